"""Whether minGRU's Triton kernels can be used: they prove themselves first.

A wrong gradient would show as nothing but a network that learns less, and a kernel that does not compile would end a
run that PyTorch's operations can train as well.
"""

import sys
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from models.mingru.tiled import TiledScan
from utils.errors import is_out_of_memory, printable

USE_TRITON = find_spec("triton") is not None and torch.version.cuda is not None  # on CUDA; ROCm is not tested
TOLERANCE = 1e-4  # of the kernels against the tiles, relative to 1 + size; four roundings where that is more


def has_kernels(kv: Tensor) -> bool:
    """Returns whether there are kernels for the tensor's device."""
    return kv.is_cuda and USE_TRITON


@cache
def kernels_agree(device: torch.device, dtype: torch.dtype, *, directions: int, hidden: int) -> bool:
    """Returns whether the kernels give what the tiles give, tried once per process and kind of layer; says if not.

    Without a C compiler, which Triton calls, or with a driver that is too old they cannot run at all.
    """
    generator = torch.Generator().manual_seed(0)  # one of its own: the run's random numbers stay as they are
    kv = 3 * torch.randn(3, 70, directions, 2, hidden, generator=generator)
    grad_h = torch.randn(3, 70, directions, hidden, generator=generator)
    example = kv.to(device, dtype), torch.tensor([70, 33, 1], device=device), grad_h.to(device, dtype)
    expected = run_once(TiledScan, *example)  # kept: a kernel that writes nothing must not find it in its memory
    try:
        from models.mingru.triton import TritonScan

        found = run_once(TritonScan, *example)
        difference = max(relative_difference(one, other) for one, other in zip(found, expected, strict=True))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return _leave_out(device, dtype, printable(f"{type(error).__name__}: {error}", 200))
    if difference > max(TOLERANCE, 4 * torch.finfo(dtype).eps):
        return _leave_out(device, dtype, f"they differ from PyTorch by {difference:.2g}")
    return True


@torch.no_grad()
def run_once(scan: type[torch.autograd.Function], kv: Tensor, lengths: Tensor, grad_h: Tensor) -> tuple[Tensor, Tensor]:
    """Returns states and gradient, past autograd: gradient checkpointing would count what is saved."""
    context = _Context()
    return scan.forward(context, kv, lengths), scan.backward(context, grad_h)[0]


class _Context:
    """Keeps what a forward pass saves for its backward pass."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference relative to 1 + size; infinity where a value is not finite."""
    difference = (found.double() - expected.double()).abs() / (1 + expected.double().abs())
    return difference.nan_to_num(nan=torch.inf).max().item()


def _leave_out(device: torch.device, dtype: torch.dtype, reason: str) -> bool:
    _say_once(f"note: minGRU's Triton kernels are not used on {device} in {str(dtype).removeprefix('torch.')}, "
              f"PyTorch's slower operations are: {reason}")
    return False


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
