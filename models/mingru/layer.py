"""minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv:2410.01201).

Gates and candidates depend on the input alone, so the recurrence is linear in the state,

    z_t = sigmoid(Linear_z(x_t))                          (update gate)
    c_t = g(Linear_h(x_t))                                (candidate)
    h_t = (1 - z_t) * h_{t-1} + z_t * c_t                 (section 3.1.2)

and all T states follow from a parallel prefix scan. g(v) = v + 0.5 for v >= 0, sigmoid(v) below (appendix B.2):
positive, so that the recurrence can be computed with logarithms. Three forms give the same states:

    sequential     the equation above, step by step: the reference, and what streaming runs
    log            the log-cumsum-exp scan of appendix B.1
    linear         a scan over (1 - z, z * c), gates and gradients in one function (`fused.py`): fast, the default
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mingru.fused import fused_scan

ScanType = Literal["linear", "log", "sequential"]


def g(v: Tensor) -> Tensor:
    """Returns the paper's positive candidate activation, continuous at 0."""
    return torch.where(v >= 0, v + 0.5, torch.sigmoid(v))


def log_g(v: Tensor) -> Tensor:
    """Returns log g(v), computed in log space."""
    return torch.where(v >= 0, (F.relu(v) + 0.5).log(), -F.softplus(-v))


def sequential(k: Tensor, v: Tensor, h0: Tensor | None = None) -> Tensor:
    """Returns the (B, T, H) states of the recurrence, step by step.

    Args:
        k, v: (B, T, H) pre-activations, Linear_z(x) and Linear_h(x).
        h0: (B, H) the state before the first frame; zeros by default.
    """
    h = torch.zeros_like(k[:, 0]) if h0 is None else h0
    states = []
    for z, candidate in zip(torch.sigmoid(k).unbind(1), g(v).unbind(1), strict=True):
        h = torch.lerp(h, candidate, z)  # (1 - z) h + z c
        states.append(h)
    return torch.stack(states, dim=1)


def parallel_log(k: Tensor, v: Tensor) -> Tensor:
    """Returns the same states from a zero state (appendix B.1): with A_t the running sum of log(1 - z),

    log h_t = A_t + logcumsumexp_s(log(z_s c_s) - A_s).

    A falls without bound while h stays near 1, and float32 leaves errors up to 1e-3 in the
    difference over long utterances; in float64 they are as small as those of the other forms.
    """
    dtype, k, v = k.dtype, k.double(), v.double()
    log_decay = -F.softplus(k)  # log(1 - z)
    log_input = -F.softplus(-k) + log_g(v)  # log(z c)
    total_decay = log_decay.cumsum(dim=1)
    return (total_decay + torch.logcumsumexp(log_input - total_decay, dim=1)).exp().to(dtype)


class MinGRU(nn.Module):
    """One direction of minGRU, with the interface of a batch-first `nn.GRU` layer.

    The recurrence runs in float32 under every precision, and in float64 in log space; Linear_z and Linear_h are one
    product.
    """

    def __init__(self, input_size: int, hidden_size: int, *, scan: ScanType = "linear"):
        super().__init__()
        self.scan = scan
        self.linear = nn.Linear(input_size, 2 * hidden_size)  # rows: Linear_z, then Linear_h

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns (B, T, H) states of (B, T, input) in the product's precision, and the last state, (B, H) float32.

        With the (B, H) `state` before the first frame it goes on from there, step by step.
        """
        kv = self.linear(x)
        with torch.autocast(x.device.type, enabled=False):
            if state is None and self.scan == "linear":
                h = fused_scan(kv.unflatten(-1, (1, 2, -1)), None)[:, :, 0]
                return h, h[:, -1].float()
            k, v = kv.to(torch.promote_types(kv.dtype, torch.float32)).chunk(2, dim=-1)
            h = parallel_log(k, v) if state is None and self.scan == "log" else sequential(k, v, state)
            return h.to(kv.dtype), h[:, -1]
