"""Times of words, by forced alignment of a text to CTC log-probabilities."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from utils.tokenizer import Tokenizer, WordSpan, ctc_frames_needed
from utils.types import Word


def align_ctc(log_probs: Tensor, text: str, tokenizer: Tokenizer, frame_seconds: float) -> list[Word] | None:
    """Returns the words of a text with their times, by its likeliest CTC path.

    Args:
        log_probs: (T, C) of CTC; frame t is centred on t * frame_seconds.
        text: words with single spaces, in the tokenizer's alphabet.
        tokenizer: encodes the text.
        frame_seconds: distance between frames.

    Returns None where there are fewer frames than CTC needs for the text.
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
    # CTC emits a token once it is sure of it: its sound began after the centre of the frame before.
    times = [((span.start - 1) * frame_seconds, (span.end - 0.5) * frame_seconds) for span in spans]
    return join_words(tokenizer.words(tokens), times, [span.score for span in spans])


def join_words(spans: Sequence[WordSpan], times: Sequence[tuple[float, float]],
               log_probs: Sequence[float]) -> list[Word]:
    """Returns words with times from the start and end, in seconds, and the log-probability of each of their tokens."""
    words = []
    for word, first, last in spans:
        start, end = max(0.0, times[first][0]), times[last][1]
        mean = sum(log_probs[first : last + 1]) / (last + 1 - first)
        words.append(Word(word, round(start, 3), round(max(start, end), 3), round(math.exp(mean), 4)))
    return words
