"""Damaged inputs by the thousand for everything that reads a file: each must be read, or refused in one line.

    python tests/fuzz.py 0 500 audio

gives the reader of audio the inputs 0 to 499, always the same ones. Before each its name goes to standard
output, so that one which ends the process is known. A traceback, a message of several lines, 20 seconds or
4 GB beyond what the process has at its start end it with a status that is not 0.
"""

import argparse
import faulthandler
import gzip
import io
import json
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from mutation import (
    ARPA,
    MANIFEST,
    SPEECH,
    TOKENS,
    YAML,
    arpa_counts,
    mutate,
    ogg_checksums,
    rewrite_archive,
    sounds,
)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the child processes of a test, which begin in this folder

SECONDS = 20  # that an input may take
MEMORY = 4 << 30  # bytes that an input may take


class Target(NamedTuple):
    """A reader of files and what it is given."""

    seeds: list[tuple[str, bytes]]  # name of the file and its content, whole
    read: Callable[[Path], None]
    errors: tuple[type[Exception], ...]  # that may refuse


def audio() -> Target:
    from utils.audio import AudioError, load_audio, probe_seconds, read_windows

    def read(path: Path) -> None:
        refused = None
        for once in (probe_seconds, load_audio, lambda path: sum(map(len, read_windows(path, step=2, overlap=1)))):
            try:
                once(path)
            except AudioError as error:
                refused = one_line(error)
        if refused:
            raise refused

    return Target(sounds(), read, (AudioError,))


def manifest() -> Target:
    from data.index import DataError, build_index
    from data.readers.manifest import list_entries
    from utils.tokenizer import CharTokenizer

    def read(path: Path) -> None:
        index = build_index("x", *list_entries(path), CharTokenizer(), path.parent / "cache")
        one_line(str(index))

    speech = "".join(json.dumps({"audio": str(path), "text": "he did not"}) + "\n" for path in SPEECH[:3])
    seeds = [MANIFEST, MANIFEST + speech, speech]
    return Target([("x.jsonl", seed.encode()) for seed in seeds], read, (DataError,))


def yaml() -> Target:
    import train
    from utils.errors import UsageError

    seeds = [YAML, *(path.read_text() for path in sorted((ROOT / "configs").glob("*.yaml")))]
    return Target([("x.yaml", seed.encode()) for seed in seeds],
                  lambda path: train.parse_arguments(["--config", str(path)]), (UsageError,))


def arpa() -> Target:
    from utils.decoding.ctc_beam import CTCBeamSearch
    from utils.decoding.options import DecodingOptions
    from utils.lm.ngram import LanguageModelError, NGram
    from utils.tokenizer import CharTokenizer

    tokenizer = CharTokenizer()

    def read(path: Path) -> None:
        ngram = NGram(path, tokenizer)
        for text in ("see the sea", "", "tea", " ".join(ngram.words or [])):
            ngram.log_prob(text)
        CTCBeamSearch(DecodingOptions(decoder="beam", lm=str(path)), tokenizer, workers=1).close()

    return Target([("x.arpa", ARPA.encode()), ("x.arpa.gz", ARPA.encode())], read, (LanguageModelError,))


def checkpoint() -> Target:
    import torch

    from models import Recognizer
    from utils.checkpoint.__main__ import write_network
    from utils.checkpoint.reading import CheckpointError

    torch.manual_seed(0)
    network = Recognizer.build("deepspeech2", n_mels=20, conv_channels=4, residual_blocks=1, rnn_size=16, rnn_layers=2)
    saved = io.BytesIO()
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"recognizer": network.config, "state_dict": weights, "optimizer_states": [{"lr": 0.1}]}, saved)
    with tempfile.TemporaryDirectory() as folder:
        write_network(Path(folder, "x.safetensors"), network.config, network.state_dict())
        shared = Path(folder, "x.safetensors").read_bytes()
    end = 8 + int.from_bytes(shared[:8], "little")  # of a header in JSON, in another order each time
    header = json.dumps(json.loads(shared[8:end]), sort_keys=True).encode()
    shared = len(header).to_bytes(8, "little") + header + shared[end:]
    return Target([("x.ckpt", rewrite_archive(saved.getvalue())), ("x.safetensors", shared)],
                  Recognizer.from_checkpoint, (CheckpointError,))


TARGETS = {"audio": audio, "manifest": manifest, "yaml": yaml, "arpa": arpa, "checkpoint": checkpoint}


def build_input(name: str, target: Target, number: int) -> tuple[str, bytes]:
    """Input `number` of a target: a file name and what is in it."""
    random = Random(f"{name}/{number}")
    file, content = random.choice(target.seeds)
    packed, after = file.endswith(".gz"), random.random() < 0.3
    if packed and after:  # damage to what is packed, or to the packing
        content = gzip.compress(content, mtime=0)
    if file.endswith(".ckpt") and random.random() < 0.7:  # what is in the archive, with the checksums that it must have
        content = rewrite_archive(content, lambda pickled: mutate(pickled, random, [], pickled))
    else:
        content = mutate(content, random, TOKENS.get(name, []), random.choice(target.seeds)[1])
    if content[:20].strip().startswith(b"\\data\\") and random.random() < 0.7:
        content = arpa_counts(content)
    if packed and not after:
        content = gzip.compress(content, mtime=0)
    if content.startswith(b"OggS") and random.random() < 0.7:
        content = ogg_checksums(content)
    return file, content


def one_line(error):
    """The error itself, whose message must be one line that can be shown anywhere."""
    message = str(error)
    assert message and "\n" not in message and len(message) < 5000, f"not one line: {message[:300]!r}"
    message.encode()
    return error


def meet(target: Target, path: Path) -> str:
    """What came of a file: `read` or `refused`; what else it does is an error."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        target.read(path)
        return "read"
    except target.errors as error:
        one_line(error)
        return "refused"
    finally:
        faulthandler.cancel_dump_traceback_later()


def limit_memory() -> None:
    """Makes a greedy allocation a MemoryError in place of a machine without memory."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def main(arguments: list[str] | None = None) -> None:
    """Meets a range of inputs, and prints how many were read and refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("targets", choices=TARGETS, nargs="+")
    args = parser.parse_args(arguments)
    faulthandler.enable()
    targets = {name: TARGETS[name]() for name in args.targets}
    limit_memory()
    outcomes = {name: Counter() for name in targets}
    with tempfile.TemporaryDirectory() as folder:
        for name, target in targets.items():
            for number in range(args.first, args.first + args.count):
                file, content = build_input(name, target, number)
                path = Path(folder, file)
                path.write_bytes(content)
                print(name, number, flush=True)
                outcomes[name][meet(target, path)] += 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
