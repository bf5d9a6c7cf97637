"""minGRU's Triton kernels, interpreted on the CPU, and what takes their place where they are wrong or cannot run."""

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_mingru import assert_is_the_papers

from models.mingru import fused, kernels
from models.mingru.fused import fused_scan
from models.mingru.tiled import TiledScan

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def run_here(program: str, **environment) -> None:
    """A process of its own: Triton reads its variables when it is imported."""
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    result = subprocess.run([sys.executable, "-c", paths + program], cwd=ROOT, capture_output=True, text=True,
                            timeout=200, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr[-2000:]


@needs_triton
def test_triton_kernels_interpreted():
    """Tiles full, begun and empty, lengths of 1, channels beyond a block; the interpreter cuts off to bfloat16."""
    run_here("""
from test_mingru import *
from models.mingru import triton as mingru_triton
mingru_triton.BLOCK_T, mingru_triton.BLOCK_H = 8, 4
for size, lengths in [((3, 17, 5), (17, 1, 8)), ((2, 1, 2), (1, 1)), ((1, 12, 3), (7,))]:
    assert_is_the_papers(mingru_triton.TritonScan.apply, size, lengths)
assert_is_the_papers(mingru_triton.TritonScan.apply, (1, 9, 2), (8,), torch.bfloat16, atol=0.1, rtol=0.05)
one = 3 * torch.randn(1, 9, 1, 2, 2)
for found, expected in zip(with_gradient(mingru_triton.TritonScan.apply, one, None),
                           with_gradient(TiledScan.apply, one, None), strict=True):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
""", TRITON_INTERPRET="1")


@needs_triton
def test_triton_kernels_prove_themselves():
    """A hundredth too much in what either of them writes is seen, and the tiles take their place."""
    run_here("""
from test_mingru import *
from models.mingru import fused, kernels
from models.mingru import triton as mingru_triton
class TooMuch:
    def __init__(self, kernel):
        self.kernel = kernel
    def __getitem__(self, grid):
        def launch(*args, **options):
            self.kernel[grid](*args, **options)
            args[-3].mul_(1.01)  # the tensor before the numbers of frames and channels
        return launch
mingru_triton.BLOCK_H, fused.has_kernels = 4, lambda kv: True
for wrong in (None, "_forward_kernel", "_backward_kernel"):
    kernel = wrong and getattr(mingru_triton, wrong)
    if wrong:
        setattr(mingru_triton, wrong, TooMuch(kernel))
    kernels.kernels_agree.cache_clear()
    assert kernels.kernels_agree(torch.device("cpu"), torch.float32, directions=2, hidden=5) is (wrong is None)
    assert_is_the_papers(fused_scan, (3, 17, 5), (17, 1, 8))
    if wrong:
        setattr(mingru_triton, wrong, kernel)
""", TRITON_INTERPRET="1")


class NoCompiler(TiledScan):
    @staticmethod
    def forward(ctx, kv, lengths):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")


class WrongStates(TiledScan):
    @staticmethod
    def forward(ctx, kv, lengths):
        return TiledScan.forward(ctx, kv, lengths) + 0.01


class WrongGradient(TiledScan):
    @staticmethod
    def backward(ctx, grad_h):
        return -TiledScan.backward(ctx, grad_h)[0], None


class NoGradient(TiledScan):
    @staticmethod
    def backward(ctx, grad_h):
        return torch.full_like(ctx.saved_tensors[0], torch.nan), None


@pytest.fixture
def in_place_of_triton(monkeypatch):
    """Makes one of the classes above the one of the Triton kernels, in a process that has not used them yet."""
    def install(scan):
        monkeypatch.setitem(sys.modules, "models.mingru.triton", scan and SimpleNamespace(TritonScan=scan))
        monkeypatch.setattr(fused, "has_kernels", lambda kv: True)
        for function in (kernels.kernels_agree, kernels._say_once):
            function.cache_clear()
    yield install
    kernels.kernels_agree.cache_clear()


@pytest.mark.parametrize(("scan", "reason"), [
    (NoCompiler, r"RuntimeError: Failed to find C compiler.\nPlease specify via CC"),
    (WrongStates, "they differ from PyTorch by 0.01"), (WrongGradient, "they differ from PyTorch by 1."),
    (NoGradient, "they differ from PyTorch by inf"), (None, "ModuleNotFoundError: import of models.mingru.triton")])
def test_tiles_take_the_place_of_kernels_that_fail(scan, reason, in_place_of_triton, capsys):
    """In one line, however many layers there are; the gradient is the paper's."""
    in_place_of_triton(scan)
    for _ in range(2):
        assert_is_the_papers(fused_scan, (3, 9, 5), (9, 1, 6))
    said, = capsys.readouterr().err.splitlines()
    assert said.startswith("note: minGRU's Triton kernels are not used on cpu in float32") and reason in said


def test_kernels_that_are_right_are_used_for_each_kind_of_layer(in_place_of_triton, capsys):
    """Tried once for a kind, within gradient checkpointing too, and the run's random numbers stay as they are."""
    used = []

    class Right(TiledScan):
        @staticmethod
        def forward(ctx, kv, lengths):
            used.append(tuple(kv.shape))
            return TiledScan.forward(ctx, kv, lengths)

    in_place_of_triton(Right)
    kv = torch.randn(2, 9, 1, 2, 5, requires_grad=True)
    before = torch.get_rng_state()
    torch.utils.checkpoint.checkpoint(fused_scan, kv, None, use_reentrant=False).sum().backward()
    fused_scan(kv.half(), None)
    assert used == [(3, 70, 1, 2, 5), (2, 9, 1, 2, 5), (2, 9, 1, 2, 5), (3, 70, 1, 2, 5), (2, 9, 1, 2, 5)]
    assert torch.equal(torch.get_rng_state(), before) and not capsys.readouterr().err


def test_full_memory_is_no_fault_of_the_kernels(in_place_of_triton):
    class Full(TiledScan):
        @staticmethod
        def forward(ctx, kv, lengths):
            raise torch.OutOfMemoryError("CUDA out of memory")

    in_place_of_triton(Full)
    with pytest.raises(torch.OutOfMemoryError):
        fused_scan(torch.randn(1, 2, 1, 2, 3), None)


@needs_triton
def test_triton_kernels_compile_for_cuda():
    """To machine code for compute capability 9.0, which needs no GPU, with registers for 4 programs a processor."""
    run_here("""
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from models.mingru import triton as mingru_triton
for kernel in (mingru_triton._forward_kernel, mingru_triton._backward_kernel):
    types = {"lengths": "*i64", "frames": "i32", "hidden": "i32"}
    signature = {name: "constexpr" if name.isupper() else types.get(name, "*bf16") for name in kernel.arg_names}
    constants = {"DIRECTIONS": 2, "BLOCK_T": mingru_triton.BLOCK_T, "BLOCK_H": mingru_triton.BLOCK_H,
                 "EXACT": tl.float32}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options=mingru_triton.OPTIONS)
    assert ".maxnreg 128" in compiled.asm["ptx"] and compiled.asm["cubin"]
""")
