"""Words in time: forced alignment of a text to CTC log-probabilities."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from utils.tokenizer import CharTokenizer, ctc_frames_needed
from utils.types import Word


def align_ctc(log_probs: Tensor, text: str, tokenizer: CharTokenizer, frame_seconds: float) -> list[Word] | None:
    """The words of `text` by the likeliest CTC path that spells it.

    Args:
        log_probs: (T, C) of blank and characters; frame t is centred on t * frame_seconds.
        text: words with single spaces, of the tokenizer's alphabet.
        tokenizer: spells it.
        frame_seconds: distance between frames.

    Returns None where there are fewer frames than CTC needs to spell the text.
    """
    tokens = tokenizer.encode(text)
    if not tokens:
        return []
    if len(log_probs) < ctc_frames_needed(tokens):
        return None
    from torchaudio.functional import forced_align, merge_tokens

    log_probs = log_probs[None].float().cpu().contiguous()
    path, scores = forced_align(log_probs, torch.tensor([tokens]), blank=tokenizer.blank)
    spans = merge_tokens(path[0], scores[0], blank=tokenizer.blank)  # their scores are mean log-probabilities
    # CTC writes a character once it is sure of it: its sound began after the centre of the frame before.
    times = [((span.start - 1) * frame_seconds, (span.end - 0.5) * frame_seconds) for span in spans]
    return join_words(text, times, [span.score for span in spans])


def join_words(text: str, times: Sequence[tuple[float, float]], log_probs: Sequence[float]) -> list[Word]:
    """Words of a text whose characters have start and end, seconds, and log-probabilities."""
    words, first = [], 0
    for word in text.split(" "):
        last = first + len(word)
        if word:
            start, end = max(0.0, times[first][0]), times[last - 1][1]
            words.append(Word(word, round(start, 3), round(max(start, end), 3),
                              round(math.exp(sum(log_probs[first:last]) / len(word)), 4)))
        first = last + 1  # the space
    return words
