"""The whole training step: how many seconds of audio a second, from the plain preset to the fast one?

    python -m benchmarks.training_step
    python -m benchmarks.training_step --device cuda --budget 400 --steps 20

The plain side is the 14,233,053-parameter preset in eager float32, with random batches; each row adds one
change to the row before. A step is features, network, CTC, backward pass, clipping and AdamW, on noise of
durations as LibriSpeech's, with a character for every 70 ms; speed does not depend on what is said. Every row
runs in processes of its own, since what the allocator keeps is a property of the process.
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.measure import benchmark_parser, peak_memory, prepare, show, wall_clock
from benchmarks.padding import like_train_clean_100
from data.epoch_contents import EpochContents
from data.sampler import BatchConfig, DurationBatchSampler
from models import Recognizer
from train import build_network, parse_arguments
from utils.audio import SAMPLE_RATE
from utils.process import keep_few_kernels, keep_large_blocks
from utils.types import Batch

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SECONDS_A_CHARACTER = 0.07
CHANGES = {  # what each row adds to the one before
    "the preset, float32, random batches": {},
    "+ memory kept between steps (mallopt)": {"mallopt": True},
    "+ duration batches": {"sorted": True},
    "+ kernels of 32 shapes kept, not 1,024": {"few_kernels": True},
    "+ time stride 4": {"time_stride": 4},
    "+ minGRU": {"rnn_type": "mingru"},
    "+ bf16 autocast": {"bf16": True},
}
ON_GPU = {"+ fused AdamW": {"fused": True}, "+ channels-last": {"channels_last": True},
          "+ torch.compile": {"compile": True}}
RECIPE = "configs/deepspeech2_mingru_librispeech.yaml, as it is, bf16"


def changes(device: torch.device) -> dict[str, dict]:
    """The rows that build on each other."""
    if device.type == "cpu":
        return CHANGES
    return {name: change for name, change in CHANGES.items() if not change.keys() & {"mallopt", "few_kernels"}} | ON_GPU


def options_of(case: str, device: torch.device) -> dict:
    """The settings of a row: all changes up to it."""
    if case == RECIPE:
        return {"config": "deepspeech2_mingru_librispeech", "mallopt": True, "sorted": True, "few_kernels": True,
                "bf16": True, "fused": device.type == "cuda"}
    options = {"config": "deepspeech2_assemblyai_librispeech"}
    for name, change in changes(device).items():
        options |= change
        if name == case:
            return options
    raise ValueError(f"no case {case!r}")


def batches(seconds: np.ndarray, budget: float, *, by_duration: bool, count: int) -> list[np.ndarray]:
    """Durations of the utterances of `count` batches of about `budget` seconds of audio each."""
    random = np.random.default_rng(0)
    if not by_duration:
        size = round(budget / seconds.mean())
        return [random.choice(seconds, size, replace=False) for _ in range(count)]
    sampler = DurationBatchSampler(EpochContents(seconds), BatchConfig(1, budget), shuffle=True)
    drawn = [seconds[[ref.index for ref in batch]] for batch in sampler]
    return drawn[:: max(1, len(drawn) // count)][:count]  # of all durations, not the first few


def noise(seconds: np.ndarray, network: Recognizer, device: torch.device) -> Batch:
    """A padded batch of noise, with random characters."""
    counts = torch.tensor((seconds * SAMPLE_RATE).round().astype(int))
    tokens = torch.tensor((seconds / SECONDS_A_CHARACTER).astype(int)).clamp_min(1)
    waveforms = 0.1 * torch.randn(len(counts), int(counts.max()))
    characters = torch.randint(1, network.tokenizer.ctc_size, (len(counts), int(tokens.max())))
    return Batch(waveforms.to(device), counts.to(device), characters.to(device), tokens.to(device), [], [], [])


def measure(options: dict, *, device: torch.device, budget: float, steps: int) -> dict:
    """Steps of training in this process; the first one is left out."""
    if options.get("mallopt"):
        keep_large_blocks()
    if options.get("few_kernels"):
        keep_few_kernels()
    torch.manual_seed(0)
    changed = [f"--{name}={options[name]}" for name in ("time_stride", "rnn_type") if name in options]
    changed += ["--compile"] if options.get("compile") else []
    args = parse_arguments(["--config", str(CONFIGS / f"{options['config']}.yaml"), *changed])
    network = build_network(args, saved={}).train().to(device)
    if options.get("channels_last"):
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), fused=options.get("fused", False))
    durations = like_train_clean_100(2000, np.random.default_rng(0))
    drawn = batches(durations, budget, by_duration=options.get("sorted", False), count=steps + 1)
    made = [noise(seconds, network, device) for seconds in drawn]

    def train(batch: Batch) -> None:
        step(network, optimizer, batch, bf16=options.get("bf16", False))

    def extract(batch: Batch) -> None:
        network.features(batch.waveforms, batch.sample_counts)

    seconds = seconds_of(train, made)
    row = {"audio s/s": float(np.concatenate(drawn[1:]).sum()) / seconds, "GB": peak_memory(device) / 1e9,
           "features %": 100 * seconds_of(extract, made) / seconds}
    if device.type == "cuda":
        row |= {"busy %": busy(train, made[1:4]), "waits": waits(lambda: train(made[0]))}
    return row


def seconds_of(function: Callable[[Batch], None], made: list[Batch]) -> float:
    """Returns the seconds for all batches but the first, which warms up."""
    function(made[0])
    started = wall_clock()
    for batch in made[1:]:
        function(batch)
    return wall_clock() - started


def busy(function: Callable[[Batch], None], made: list[Batch]) -> float:
    """Returns the share of the time in which the GPU works, %: what is left is what CUDA graphs could save."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        started = wall_clock()
        for batch in made:
            function(batch)
        seconds = wall_clock() - started
    return 1e-4 * sum(event.self_device_time_total for event in profile.key_averages()) / seconds


def waits(function: Callable[[], None]) -> str:
    """Returns the places of the code where the host waits for the GPU, and how often it does."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchronizing" in str(one.message))
    return ", ".join(f"{place} ({count})" for place, count in places.items()) or "none"


def step(network: Recognizer, optimizer: torch.optim.Optimizer, batch: Batch, *, bf16: bool) -> None:
    """One step of training."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch.waveforms.device.type, torch.bfloat16, enabled=bf16):
        sums = network.loss(network.encode(batch.waveforms, batch.sample_counts), batch)
    (sums["loss"] / batch.token_counts.sum()).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()


def command(case: str, args: argparse.Namespace) -> list[str]:
    """Returns the command that measures one row in a process of its own."""
    return [sys.executable, "-m", "benchmarks.training_step", "--case", case, "--device", args.device, "--threads",
            str(args.threads), "--budget", str(args.budget), "--steps", str(args.steps)]


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=1)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of audio a batch")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a round")
    parser.add_argument("--case", help="run this row alone, in this process, and print its rate")
    args = parser.parse_args()
    device = prepare(args)
    if device is None:
        return
    if args.case:
        print(json.dumps(measure(options_of(args.case, device), device=device, budget=args.budget, steps=args.steps)))
        return
    cases = [*changes(device), RECIPE]
    found = {case: [] for case in cases}
    for _ in range(args.rounds):
        for case in cases:
            done = subprocess.run(command(case, args), check=True, stdout=subprocess.PIPE)
            found[case].append(json.loads(done.stdout))
    rates = {case: median(one["audio s/s"] for one in found[case]) for case in cases}
    rows = [{"step": case} | found[case][-1] | {"audio s/s": rates[case], "ratio": rates[case] / rates[cases[0]]}
            for case in cases]
    show(f"Training step, batches of {args.budget:g} s, median of {args.rounds}", rows, json_path=args.json)


if __name__ == "__main__":
    main()
