"""minGRU's linear scan as one autograd function: Triton kernels on CUDA, tiles in PyTorch elsewhere."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mingru.kernels import has_kernels, kernels_agree
from models.mingru.tiled import TiledScan


def fused_scan(kv: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns the recurrence's (B, T, D, H) states in D directions, in kv's precision; computed in float32 at least.

    Args:
        kv: (B, T, D, 2, H) pre-activations k and v. The second direction runs from an utterance's last frame to
            its first.
        lengths: (B,) frames; None where there is no padding. Padding has states of zero.
    """
    if has_kernels(kv) and kernels_agree(kv.device, kv.dtype, directions=kv.shape[2], hidden=kv.shape[4]):
        from models.mingru.triton import TritonScan

        return TritonScan.apply(kv, lengths)
    return TiledScan.apply(kv, lengths)


def fused_directions(linears: Sequence[nn.Linear], x: Tensor, lengths: Tensor | None) -> Tensor:
    """Returns the (B, T, D * H) states of D layers over the same (B, T, input), the second one from the end.

    One product serves both directions, and nothing is reversed in memory.
    """
    weight = torch.cat([linear.weight for linear in linears])  # (D * 2 * H, input)
    kv = F.linear(x, weight, torch.cat([linear.bias for linear in linears]))
    with torch.autocast(x.device.type, enabled=False):
        return fused_scan(kv.unflatten(-1, (len(linears), 2, -1)), lengths).flatten(2)


def exclude_scan_from_compile() -> None:
    """Keeps torch.compile from tracing `fused_scan`, whose loops over tiles and frames it would unroll.

    A decorator would do the same, and load the compiler into every program that imports this file.
    """
    global fused_scan
    fused_scan = torch.compiler.disable(fused_scan)
