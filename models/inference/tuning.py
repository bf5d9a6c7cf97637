"""The errors of a network's beam search on validation sets, over the weights of the search.

CTC log-probabilities are computed once and decoded at each point, with a decoder that loads the n-gram anew: about half
a second per million n-grams of an ARPA file, milliseconds for a KenLM binary. An attention model encodes the validation
sets once for the grid and once for each step of the pattern search.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from models.recognizer import Recognizer
from utils.decoding.decoder import Decoder
from utils.decoding.options import DecodingOptions
from utils.decoding.tune import Grid, Tuning, pattern_search
from utils.lm.ngram import decompressed, quiet_stderr
from utils.metrics import ErrorCounts, count_errors
from utils.tokenizer import Tokenizer
from utils.types import Batch

BATCH = 256  # utterances whose log-probabilities are decoded in one call, one thread each


def tune_decoding(network: Recognizer, decoder: Decoder, batches: Callable[[], Iterable[Batch]], grid: Grid,
                  rounds: int) -> Tuning:
    """Returns the errors of a network's beam search on validation sets over the weights in `grid` and around it.

    Args:
        network: a CTC or an attention model.
        decoder: its beam search; options that are not in the grid stay.
        batches: returns the batches of the validation sets, each time that it is called.
        grid: values of each weight, see `build_grid`.
        rounds: times that the spacing is halved.
    """
    base = decoder.options
    with ExitStack() as stack:
        if network.autoregressive:
            measure = partial(count_attention_errors, network, decoder, batches)
        else:
            base = replace(base, lm=stack.enter_context(decompressed(base.lm)))
            measure = partial(count_ctc_errors, *collect_log_probs(network, batches()), network.tokenizer)
        greedy, plain = measure([DecodingOptions(), replace(base, lm=None)])
        surface = pattern_search(lambda points: measure([replace(base, **dict(zip(grid, point, strict=True)))
                                                         for point in points]), grid, rounds)
    return Tuning(list(grid), surface, greedy, plain)


@torch.inference_mode()
def collect_log_probs(network: Recognizer, batches: Iterable[Batch]) -> tuple[list[str], list[Tensor]]:
    """Returns the reference and the (T, C) CTC log-probabilities of each utterance, on the CPU."""
    texts, log_probs = [], []
    for batch in batches:
        outputs, lengths = network.ctc_log_probs(_encode(network, batch))
        texts += batch.texts
        log_probs += [one[:length].float().cpu().clone()
                      for one, length in zip(outputs, lengths.tolist(), strict=True)]
    return texts, log_probs


def count_ctc_errors(texts: list[str], log_probs: list[Tensor], tokenizer: Tokenizer,
                     ways: list[DecodingOptions]) -> list[ErrorCounts]:
    """Returns the errors of each way of decoding (T, C) CTC log-probabilities, all cores at work."""
    return [_count_ctc_errors(texts, log_probs, tokenizer, options)
            for options in tqdm(ways, desc="decoding", unit=" points", leave=False, disable=None)]


def _count_ctc_errors(texts: list[str], log_probs: list[Tensor], tokenizer: Tokenizer,
                      options: DecodingOptions) -> ErrorCounts:
    order = sorted(range(len(texts)), key=lambda i: len(log_probs[i]))
    hypotheses = {}
    with Decoder(options, tokenizer) as decoder:
        if options.decoder == "beam":
            with quiet_stderr():  # KenLM draws a bar each time
                decoder.ctc_beam  # noqa: B018 (loads it)
        for chunk in (order[i : i + BATCH] for i in range(0, len(order), BATCH)):
            part = [log_probs[i] for i in chunk]
            found = decoder.search_ctc(pad_sequence(part, batch_first=True), torch.tensor([*map(len, part)]))
            hypotheses.update({i: best[0].text for i, best in zip(chunk, found, strict=True)})
    return count_errors(texts, [hypotheses[i] for i in range(len(texts))])


@torch.inference_mode()
def count_attention_errors(network: Recognizer, decoder: Decoder, batches: Callable[[], Iterable[Batch]],
                           ways: list[DecodingOptions]) -> list[ErrorCounts]:
    """Returns the errors of each way of decoding an attention model, which encodes every batch once for all."""
    decoders = [decoder.with_options(options) for options in ways]
    counts = [ErrorCounts()] * len(ways)
    for batch in batches():
        encoding = _encode(network, batch)
        for i, one in enumerate(decoders):
            hypotheses = [best[0].text for best in network.search(encoding, one)]
            counts[i] += count_errors(batch.texts, hypotheses)
    return counts


def _encode(network: Recognizer, batch: Batch) -> NamedTuple:
    return network.encode(batch.waveforms.to(network.device), batch.sample_counts.to(network.device))
