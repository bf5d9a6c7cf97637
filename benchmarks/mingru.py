"""How fast is minGRU, forward and backward in two directions of 512, compared with nn.GRU and nn.LSTM?

    python -m benchmarks.mingru                    CPU
    python -m benchmarks.mingru --device cuda      the Triton kernels; says so where there is no GPU

Inputs have 512 features, and their gradient is taken. The floor is what the machine needs for the two
directions' products at the rate of its largest matrix products, and for the scan's bytes at the rate at which
it copies memory: k and v in, h out; then k, v, h and dL/dh in, dL/dk and dL/dv out.
"""

import torch
from torch import Tensor, nn

from benchmarks.measure import benchmark_parser, clock_of, machine_rates, medians, prepare, show
from models.components.recurrent import RecurrentLayer
from models.mingru import tiled as mingru_tiled
from models.mingru.fused import fused_scan
from utils.process import keep_large_blocks

SIZE = 512  # of the input and of each direction
SIZES = {"cpu": [(512, 16), (2048, 1), (100, 4)], "cuda": [(800, 32), (512, 16), (2048, 1), (100, 4)]}  # frames, batch
FORMS = {"mingru log": ("log", False), "mingru sequential": ("sequential", False), "mingru": ("linear", False),
         "mingru, compiled gates": ("linear", True)}


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--compile", action="store_true", help="gates fused by torch.compile as well; CPU only")
    args = parser.parse_args()
    keep_large_blocks()  # as train.py does
    device = prepare(args)
    if device is None:
        return
    pointwise = gates(args.compile and device.type == "cpu")
    size = 8192 if device.type == "cuda" else 2048
    product, copy = machine_rates(device, size=size)
    rates = {"float32": product, "bf16": machine_rates(device, size=size, dtype=torch.bfloat16)[0], "copy": copy}
    rows, clock = [], clock_of(args)
    for frames, batch in SIZES[device.type]:
        seconds = medians(layer_cases(frames, batch, device, pointwise), rounds=args.rounds, clock=clock)
        rows += [row(name, frames, batch, taken, seconds["nn.GRU"], layer_floor(frames * batch, "bf16" in name, rates))
                 for name, taken in seconds.items()]
        scans = medians(scan_cases(frames, batch, device, pointwise), rounds=args.rounds, clock=clock)
        rows += [row(name, frames, batch, taken, None, scan_floor(frames * batch, "bf16" in name, rates))
                 for name, taken in scans.items()]
    show("forward + backward, bidirectional, 512 units", rows, json_path=args.json,
         **{name: f"{rate / 1e9:.0f} {'GB' if name == 'copy' else 'GFLOP'}/s" for name, rate in rates.items()})


def row(name: str, frames: int, batch: int, seconds: float, gru: float | None, floor: float) -> dict:
    """One line of the table; the floor is minGRU's own."""
    line = {"case": name, "T": frames, "B": batch, "ms": 1e3 * seconds}
    if gru is not None:
        line["times nn.GRU"] = gru / seconds
    return line if name.startswith("nn.") else line | {"floor ms": 1e3 * floor, "of floor": seconds / floor}


def gates(compiled: bool) -> dict[bool, tuple]:
    """The arithmetic of gates and of their gradients as it is and, where asked for, fused by torch.compile."""
    functions = mingru_tiled.gates, mingru_tiled.gate_gradients
    torch._dynamo.config.recompile_limit = 64  # beyond it, other sizes and precisions would run as they are
    return {False: functions} | ({True: tuple(torch.compile(f, dynamic=True) for f in functions)} if compiled else {})


def layer_cases(frames: int, batch: int, device: torch.device, pointwise: dict) -> dict:
    """Whole layers, from an input to the gradients of input and weights."""
    x = torch.randn(batch, frames, SIZE, device=device, requires_grad=True)
    lengths = torch.full((batch,), frames, device=device)
    grad = torch.randn(batch, frames, 2 * SIZE, device=device)
    cases = {}
    for precision in ("", ", bf16"):
        for cls in (nn.GRU, nn.LSTM):
            if not precision or device.type == "cuda":  # the CPU's have none
                layer = cls(SIZE, SIZE, batch_first=True, bidirectional=True).to(device)
                cases[f"nn.{cls.__name__}{precision}"] = case(lambda layer=layer: layer(x)[0], grad, precision)
        for name, (scan, compiled) in FORMS.items():
            if compiled in pointwise and (scan == "linear" or not precision):
                layer = RecurrentLayer(SIZE, SIZE, rnn_type="mingru", scan=scan).to(device)
                cases[name + precision] = case(lambda layer=layer: layer(x, lengths), grad, precision,
                                               pointwise[compiled])
    return cases


def scan_cases(frames: int, batch: int, device: torch.device, pointwise: dict) -> dict:
    """The recurrence without its product."""
    cases = {}
    for precision, dtype in (("", torch.float32), (", bf16", torch.bfloat16)):
        kv = torch.randn(batch, frames, 2, 2, SIZE, device=device, dtype=dtype, requires_grad=True)
        grad = torch.randn(batch, frames, 2, SIZE, device=device)
        for compiled, functions in pointwise.items():
            name = f"scan alone{', compiled gates' if compiled else ''}{precision}"
            cases[name] = case(lambda kv=kv: fused_scan(kv, None), grad, "", functions)
    return cases


def case(forward, grad: Tensor, precision: str, functions: tuple | None = None):
    """A function that runs `forward` and its backward pass."""
    def run() -> None:
        if functions is not None:
            mingru_tiled.gates, mingru_tiled.gate_gradients = functions
        with torch.autocast(grad.device.type, dtype=torch.bfloat16, enabled=bool(precision)):
            out = forward()
        out.backward(grad.to(out.dtype))
    return run


def layer_floor(frames: int, half: bool, rates: dict[str, float]) -> float:
    """Seconds of the products forward and of both backward, and of the scan."""
    flops = 3 * 2 * frames * SIZE * 4 * SIZE
    return flops / rates["bf16" if half else "float32"] + scan_floor(frames, half, rates)


def scan_floor(frames: int, half: bool, rates: dict[str, float]) -> float:
    """Seconds in which the scan's inputs and outputs can be read and written."""
    return 9 * frames * 2 * SIZE * (2 if half else 4) / rates["copy"]


if __name__ == "__main__":
    main()
