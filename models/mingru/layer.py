"""minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv:2410.01201).

Gates and candidates depend on the input alone, so the recurrence is linear in the state,

    z_t = sigmoid(Linear_z(x_t))                          (update gate)
    c_t = g(Linear_h(x_t))                                (candidate)
    h_t = (1 - z_t) * h_{t-1} + z_t * c_t                 (section 3.1.2)

and all T states follow from a parallel prefix scan. g(v) = v + 0.5 for v >= 0, sigmoid(v) below
(Appendix B.2): positive, so that the recurrence can be computed with logarithms. Three forms of
it stand side by side here and give the same states:

    sequential     the equation above, step by step: the reference, and what streaming runs
    linear         a scan over (1 - z, z * c), gates and gradients in one function: the default, exact and
                   fast; a Triton kernel on CUDA (`mingru_triton.py`), tiles in PyTorch elsewhere and
                   where Triton is not installed (`mingru_tiled.py`)
    log            the log-cumsum-exp scan of the paper's Appendix B.1
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mingru.tiled import TiledScan

ScanSpace = Literal["linear", "log", "sequential"]

USE_TRITON = find_spec("triton") is not None and torch.version.cuda is not None  # on CUDA; ROCm is not tested
SHUT = -1e4  # a k of which z = sigmoid(k) is exactly 0, and whose logarithm is finite


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
    """The same states from a zero state, without a step at a time in autograd: `fused_scan` of one direction."""
    return fused_scan(torch.stack([k, v], dim=2)[:, :, None], None)[:, :, 0]


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


def fused_scan(kv: Tensor, lengths: Tensor | None) -> Tensor:
    """States of all directions in one autograd function; arguments and result as in `directional_states`.

    CUDA runs the Triton kernels. A CPU, and CUDA where Triton is not installed, runs `TiledScan`.
    """
    if kv.is_cuda and USE_TRITON:
        from models.mingru.triton import TritonScan

        return TritonScan.apply(kv, lengths)
    return TiledScan.apply(kv, lengths)


def keep_scan_uncompiled() -> None:
    """torch.compile then leaves `fused_scan` alone, whose loops over tiles and frames it would unroll.

    A decorator would do the same, and load the compiler into every program that imports this file.
    """
    global fused_scan
    fused_scan = torch.compiler.disable(fused_scan)


def directional_states(kv: Tensor, lengths: Tensor | None, scan: ScanSpace = "linear") -> Tensor:
    """The recurrence from a zero state in one or two directions.

    Args:
        kv: (B, T, D, 2, H) pre-activations k and v of D directions. The second one runs from an
            utterance's last frame to its first.
        lengths: (B,) frames; None where there is no padding. Padding has states of zero.

    Returns:
        (B, T, D, H) states in kv's precision; they are computed in float32 at least.
    """
    if scan == "linear":
        return fused_scan(kv, lengths)
    k, v = kv.to(torch.promote_types(kv.dtype, torch.float32)).unbind(3)
    if lengths is not None:
        padding = (torch.arange(kv.shape[1], device=kv.device) >= lengths[:, None])[..., None, None]
        k = k.masked_fill(padding, SHUT)  # so that the way back from the end begins with a zero state
    recurrence = {"log": parallel_log, "sequential": sequential}[scan]
    h = [recurrence(k[:, :, 0], v[:, :, 0])]
    if kv.shape[2] == 2:
        h.append(recurrence(k[:, :, 1].flip(1), v[:, :, 1].flip(1)).flip(1))
    h = torch.stack(h, dim=2).to(kv.dtype)
    return h if lengths is None else h.masked_fill(padding, 0.0)


class MinGRU(nn.Module):
    """One direction of minGRU, with the interface of a batch-first `nn.GRU` layer.

    The recurrence runs in float32 under every precision; Linear_z and Linear_h are one product.
    """

    def __init__(self, input_size: int, hidden_size: int, *, scan: ScanSpace = "linear"):
        super().__init__()
        self.scan = scan
        self.linear = nn.Linear(input_size, 2 * hidden_size)  # rows: Linear_z, then Linear_h

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, input) to (B, T, H) states in the product's precision, and the last state, (B, H) float32.

        With the (B, H) `state` before the first frame it goes on from there, step by step.
        """
        if state is None:
            h = run_directions([self], x, None)
            return h, h[:, -1].float()
        k, v = self.linear(x).to(state.dtype).chunk(2, dim=-1)
        h = sequential(k, v, state)
        return h, h[:, -1]


def run_directions(layers: Sequence[MinGRU], x: Tensor, lengths: Tensor | None) -> Tensor:
    """One or two layers over the same (B, T, input), the second from the end, to (B, T, directions * H).

    One product serves both directions, and nothing is reversed in memory.
    """
    weight = torch.cat([layer.linear.weight for layer in layers])  # (directions * 2 * H, input)
    kv = F.linear(x, weight, torch.cat([layer.linear.bias for layer in layers]))
    with torch.autocast(x.device.type, enabled=False):
        return directional_states(kv.unflatten(-1, (len(layers), 2, -1)), lengths, layers[0].scan).flatten(2)
