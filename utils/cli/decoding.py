"""The flags of decoding that a pretrained network brings along."""

import argparse

from utils.checkpoint.pretrained import TUNED_FLAGS, find_ngram
from utils.cli.config import config_arguments


def own_decoding(args: argparse.Namespace, network: str, parser: argparse.ArgumentParser) -> list[str]:
    """Returns flags that name a pretrained network's own n-gram, with the weights that were tuned for it.

    None for greedy decoding, where `args` name another n-gram, and for any other network. Raises UsageError.
    """
    ngram = find_ngram(network) if args.decoder == "beam" and not args.lm else None
    if ngram is None:
        return []
    tuned = ngram.with_name(TUNED_FLAGS)
    return [*(config_arguments(str(tuned), parser) if tuned.is_file() else []), f"--lm={ngram}"]
