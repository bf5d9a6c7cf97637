"""How fast are recordings transcribed: short and long, alone and in batches, on one thread and on more?

    python -m benchmarks.transcribe
    python -m benchmarks.transcribe --checkpoint X.ckpt --corpus FOLDER
    python -m benchmarks.transcribe --device cuda      by batch size

The real-time factor is seconds of work for a second of audio; the network may be untrained, which costs the
same. Memory is the peak of a process of its own, less that of one that transcribes a second.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.material import CORPUS, untrained, write_joined
from benchmarks.measure import benchmark_parser, medians, peak_memory, prepare, show
from models import Transcriber

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {  # as in the recipes for one CPU, and for LibriSpeech
    "cpu": {"rnn_type": "mingru", "rnn_size": 256, "rnn_layers": 3, "time_stride": 4},
    "cuda": {"rnn_type": "mingru", "rnn_size": 1024, "rnn_layers": 6, "time_stride": 4}}
BATCHES = (1, 8, 32)  # on a GPU


def all_of(transcriber: Transcriber, paths: list[Path], threads: int):
    """A case: these files, one after the other."""
    def refuse(error) -> None:
        raise error

    def case() -> None:
        torch.set_num_threads(threads)
        for _ in transcriber.transcribe_all([str(path) for path in paths], refuse):
            pass
    return case


def peak_megabytes(checkpoint: Path, audio: Path) -> float:
    """Returns the peak memory of a process that transcribes a file, MB."""
    code = ("import sys, contextlib, inference\n"
            "from benchmarks.measure import peak_memory\n"
            "with contextlib.suppress(SystemExit):\n    inference.main(sys.argv[1:])\n"
            "print(peak_memory(), file=sys.stderr)")
    command = [sys.executable, "-c", code, "--checkpoint", str(checkpoint), "--audio", str(audio), "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stderr.split()[-1]) / 1e6


def on_cpu(checkpoint: Path, longs: dict[Path, float], shorts: dict[Path, float]) -> dict[str, tuple]:
    """The cases of a CPU, each with its seconds of audio: on one thread and on all, alone and in batches."""
    eight, one = Transcriber(checkpoint), Transcriber(checkpoint, batch_size=1)
    files, ordered, cases = list(shorts), sorted(shorts, key=shorts.get), {}
    for threads in sorted({1, os.cpu_count()}):
        for path, length in longs.items():
            cases[f"one file of {length:g} s, {threads} threads"] = all_of(eight, [path], threads), length
        for name, transcriber, some in (("one at a time", one, files), ("8 at a time", eight, files),
                                        ("8 at a time, by length", eight, ordered)):
            cases[f"{len(shorts)} short files {name}, {threads} threads"] = (
                all_of(transcriber, some, threads), sum(shorts.values()))
    return cases


def on_gpu(checkpoint: Path, longs: dict[Path, float], shorts: dict[Path, float], device: torch.device) -> dict:
    """The cases of a GPU, by the size of the batch."""
    ordered, cases = sorted(shorts, key=shorts.get), {}
    for size in BATCHES:
        transcriber = Transcriber(checkpoint, batch_size=size, device=device)
        for path, length in longs.items():
            cases[f"one file of {length:g} s, batches of {size}"] = all_of(transcriber, [path], 1), length
        cases[f"{len(shorts)} short files by length, batches of {size}"] = (
            all_of(transcriber, ordered, 1), sum(shorts.values()))
    return cases


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--checkpoint", type=Path, help="random weights by default, of a minGRU that fits the device")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="recordings to join to the lengths needed")
    parser.add_argument("--longest", type=float, default=600.0, help="seconds of the longest recording")
    parser.add_argument("--files", type=int, default=32, help="short files of 2 to 15 s")
    args = parser.parse_args()
    device = prepare(args)
    if device is None:
        return
    lengths = [args.longest / 60, args.longest / 10, args.longest]
    short = np.random.default_rng(0).uniform(2, 15, args.files).round(2).tolist()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.checkpoint or untrained(Path(folder) / "x.ckpt", **NETWORKS[device.type])
        quiet, *paths = write_joined(Path(folder), [1.0, *lengths, *short], args.corpus)
        longs, shorts = (dict(zip(some, seconds, strict=True)) for some, seconds in (
            (paths[: len(lengths)], lengths), (paths[len(lengths) :], short)))
        cpu = device.type == "cpu"
        cases = on_cpu(checkpoint, longs, shorts) if cpu else on_gpu(checkpoint, longs, shorts, device)
        seconds = medians({name: case for name, (case, _) in cases.items()}, rounds=args.rounds)
        facts = memory_of(checkpoint, quiet, paths[2], args.longest) if cpu else {"peak GB": peak_memory(device) / 1e9}
    rows = [{"what": name, "real-time factor": seconds[name] / audio, "hours an hour": audio / seconds[name]}
            for name, (_, audio) in cases.items()]
    show("transcribing", rows, json_path=args.json, **facts)


def memory_of(checkpoint: Path, quiet: Path, longest: Path, seconds: float) -> dict[str, int]:
    """Peaks of processes that transcribe a second, and the longest recording."""
    base, peak = peak_megabytes(checkpoint, quiet), peak_megabytes(checkpoint, longest)
    return {"peak MB for 1 s": round(base), f"for {seconds:g} s": round(peak),
            "more MB an hour beyond": round((peak - base) / seconds * 3600)}


if __name__ == "__main__":
    main()
