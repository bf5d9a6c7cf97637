"""minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv:2410.01201).

Gates and candidates depend on the input alone, so the recurrence is linear in the state,

    z_t = sigmoid(Linear_z(x_t))                          (update gate)
    c_t = g(Linear_h(x_t))                                (candidate)
    h_t = (1 - z_t) * h_{t-1} + z_t * c_t                 (section 3.1.2)

and all T states follow from a parallel prefix scan. g(v) = v + 0.5 for v >= 0, sigmoid(v) below
(Appendix B.2): positive, so that the recurrence can be computed with logarithms. Three forms of
it stand side by side here and give the same states:

    sequential     the equation above, step by step: the reference, and what streaming runs
    linear         an odd-even parallel scan over (1 - z, z * c); the default, exact and fast
    log            the log-cumsum-exp scan of the paper's Appendix B.1
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ScanSpace = Literal["linear", "log", "sequential"]


def g(v: Tensor) -> Tensor:
    """The paper's positive candidate activation, continuous at 0."""
    return torch.where(v >= 0, v + 0.5, torch.sigmoid(v))


def log_g(v: Tensor) -> Tensor:
    """log g(v), without leaving log space."""
    return torch.where(v >= 0, (F.relu(v) + 0.5).log(), -F.softplus(-v))


def sequential(k: Tensor, v: Tensor, h0: Tensor | None = None) -> Tensor:
    """The recurrence, step by step.

    Args:
        k, v: (B, T, H) pre-activations, Linear_z(x) and Linear_h(x).
        h0: (B, H) the state before the first frame; zeros by default.

    Returns:
        (B, T, H) states.
    """
    h = torch.zeros_like(k[:, 0]) if h0 is None else h0
    states = []
    for z, candidate in zip(torch.sigmoid(k).unbind(1), g(v).unbind(1), strict=True):
        h = torch.lerp(h, candidate, z)  # (1 - z) h + z c
        states.append(h)
    return torch.stack(states, dim=1)


def parallel_linear(k: Tensor, v: Tensor) -> Tensor:
    """The same states by an odd-even scan: O(T) work in O(log T) steps, from a zero state."""
    return LinearRecurrence.apply(torch.sigmoid(-k), torch.sigmoid(k) * g(v))  # 1 - sigmoid(k) is sigmoid(-k)


def parallel_log(k: Tensor, v: Tensor) -> Tensor:
    """The same states by the paper's Appendix B.1: with A_t the running sum of log(1 - z),

    log h_t = A_t + logcumsumexp_s(log(z_s c_s) - A_s).

    A falls without bound while h stays near 1, and float32 leaves errors up to 1e-3 in the
    difference over long utterances; in float64 they are as small as those of the other forms.
    """
    dtype, k, v = k.dtype, k.double(), v.double()
    log_decay = -F.softplus(k)  # log(1 - z)
    log_input = -F.softplus(-k) + log_g(v)  # log(z c)
    total_decay = log_decay.cumsum(dim=1)
    return (total_decay + torch.logcumsumexp(log_input - total_decay, dim=1)).exp().to(dtype)


class LinearRecurrence(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t along dimension 1, h_0 = b_0.

    With G_t the gradient that reaches h_t in all, G_t = dL/dh_t + a_{t+1} G_{t+1}: the same
    recurrence run backwards, so the backward pass is one more scan and only a and h are kept.
    """

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        h = odd_even_scan(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, grad_h: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        a_next = F.pad(a[:, 1:], (0, 0, 0, 1))  # (B, T, H), nothing follows the last frame
        grad_b = odd_even_scan(a_next.flip(1), grad_h.flip(1)).flip(1)
        grad_a = grad_b * F.pad(h[:, :-1], (0, 0, 1, 0))
        return grad_a, grad_b


def odd_even_scan(a: Tensor, b: Tensor) -> Tensor:
    """All states of h_t = a_t h_{t-1} + b_t with h_{-1} = 0; a, b and the result are (B, T, H).

    Two neighbouring steps are one step with coefficients (a_1 a_0, a_1 b_0 + b_1). Joining all
    pairs halves the length; the shorter recurrence gives every odd state, and one more step from
    those gives the even ones (Blelloch 1990).
    """
    frames = b.shape[1]
    if frames == 1:
        return b.clone()
    a_even, a_odd = a[:, 0 : frames - 1 : 2], a[:, 1::2]
    b_even, b_odd = b[:, 0 : frames - 1 : 2], b[:, 1::2]
    h_odd = odd_even_scan(a_odd * a_even, torch.addcmul(b_odd, a_odd, b_even))
    h = torch.empty_like(b)
    h[:, 1::2] = h_odd
    h[:, 0] = b[:, 0]
    h[:, 2::2] = torch.addcmul(b[:, 2::2], a[:, 2::2], h_odd[:, : (frames - 1) // 2])
    return h


SCANS = {"linear": parallel_linear, "log": parallel_log, "sequential": sequential}


class MinGRU(nn.Module):
    """One direction of minGRU, with the interface of a batch-first `nn.GRU` layer.

    The recurrence runs in float32 under every precision; Linear_z and Linear_h are one product.
    """

    def __init__(self, input_size: int, hidden_size: int, *, scan: ScanSpace = "linear"):
        super().__init__()
        self.scan = scan
        self.linear = nn.Linear(input_size, 2 * hidden_size)  # rows: Linear_z, then Linear_h

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, input) to (B, T, H) states in x's precision, and the last state, (B, H) float32.

        With the (B, H) `state` before the first frame it goes on from there, step by step.
        """
        k, v = self.linear(x).chunk(2, dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            k, v = k.float(), v.float()
            h = SCANS[self.scan](k, v) if state is None else sequential(k, v, state)
        return h.to(k.dtype), h[:, -1]
