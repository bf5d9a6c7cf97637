"""Decoding of CTC outputs (Graves et al. 2006)."""

from torch import Tensor


def greedy_decode(log_probs: Tensor, lengths: Tensor, *, blank: int = 0) -> list[list[int]]:
    """Best path: the likeliest class of each valid frame, repeats joined, blanks dropped.

    Args:
        log_probs: (B, T, V).
        lengths: (B,) valid frames; frames beyond them are not looked at.
    """
    best = log_probs.argmax(dim=-1)  # (B, T)
    first = best.diff(dim=1, prepend=best.new_full((len(best), 1), -1)) != 0  # where a run begins
    paths, begins = best.cpu(), first.cpu()
    decoded = []
    for path, begin, length in zip(paths, begins, lengths.tolist(), strict=True):
        symbols = path[:length][begin[:length]]
        decoded.append(symbols[symbols != blank].tolist())
    return decoded
