"""What every benchmark shares: alternatives timed in turn, a table of medians and ratios, a JSON file."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch


def benchmark_parser(doc: str, *, rounds: int) -> argparse.ArgumentParser:
    """`--rounds`, `--threads`, `--device` and `--json`, described by the first line of the script's docstring."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="times that each alternative is run; medians count")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    return parser


def prepare(args: argparse.Namespace) -> torch.device | None:
    """Sets the threads; the device, or None with a line on the screen where it is not there."""
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU here: not measured")
        return None
    return device


def clock_of(args: argparse.Namespace) -> Callable[[], float]:
    """The wall's clock; on one thread of the CPU the processor's, which leaves out what others do meanwhile."""
    return time.process_time if args.threads == 1 and args.device == "cpu" else wall_clock


def wall_clock() -> float:
    """Seconds; the GPU, where there is one, has done its work by then."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def medians(cases: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 1,
            clock: Callable[[], float] = wall_clock) -> dict[str, float]:
    """Median seconds of each case.

    Cases take turns, so that other work on the machine disturbs them alike, and what it disturbs the
    median leaves out.
    """
    seconds = {name: [] for name in cases}
    for turn in range(warmup + rounds):
        for name, case in cases.items():
            started = clock()
            case()
            taken = clock() - started
            if turn >= warmup:
                seconds[name].append(taken)
    return {name: median(values) for name, values in seconds.items()}


def machine_rates(device: torch.device | str = "cpu", *, size: int = 2048, rounds: int = 5,
                  dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """Measures the machine: operations per second of a matrix product in `dtype`, bytes per second of a copy.

    The floor of a case is its operations, or the bytes that it must read and write, over these.
    """
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.randn(16 * size * size, device=device)  # beyond every cache
    target = torch.empty_like(source)
    seconds = medians({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, rounds=rounds)
    return 2 * size**3 / seconds["product"], 2 * source.nbytes / seconds["copy"]


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Bytes, at most so far: of the GPU's tensors, or of this process (`getrusage` would count its parent's, too)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = dict(line.split(":", 1) for line in _lines("/proc/self/status"))
    return 1024 * int(status["VmHWM"].split()[0])


def show(title: str, rows: list[dict], *, json_path: Path | None = None, **facts) -> None:
    """Prints rows as a table under a title and the machine's name, and writes both with `facts` to a JSON file."""
    print(f"{title}\n{machine()}" + "".join(f"; {name} {value}" for name, value in facts.items()))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        numbers = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([f"{row[0]:<{widths[0]}}", *numbers]))
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        content = {"title": title, "machine": machine(), "facts": facts, "rows": rows}
        json_path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def machine() -> str:
    """Processor, threads in use, GPU where there is one, and PyTorch's version."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{_processor()}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def _processor() -> str:
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _cell(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
