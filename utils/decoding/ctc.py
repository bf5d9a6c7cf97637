"""Greedy decoding of CTC outputs (Graves et al. 2006)."""

from torch import Tensor


def greedy_decode(log_probs: Tensor, lengths: Tensor, *, blank: int = 0) -> list[list[int]]:
    """Returns the tokens of each utterance's best path: the likeliest class per frame, repeats joined, no blanks.

    Args:
        log_probs: (B, T, C).
        lengths: (B,) valid frames.
        blank: class of the blank.
    """
    best = log_probs.argmax(dim=-1)  # (B, T)
    new = best.diff(dim=1, prepend=best.new_full((len(best), 1), -1)) != 0  # another class than in the frame before
    decoded = []
    for path, is_new, length in zip(best.cpu(), new.cpu(), lengths.tolist(), strict=True):
        tokens = path[:length][is_new[:length]]
        decoded.append(tokens[tokens != blank].tolist())
    return decoded
