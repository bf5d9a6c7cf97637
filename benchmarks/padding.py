"""How much of a batch is padding, and how random are batches of like durations?

    python -m benchmarks.padding
    python -m benchmarks.padding --corpus FOLDER FOLDER

LibriSpeech's durations are drawn from distributions built to its published means and ranges: train-clean-100
28,539 utterances, mean 12.7 s, most of 12 to 17 s, from 1.4 to 24.5 s; test-clean 2,620, mean 7.4 s, skewed,
from 1.3 to 35 s. Corpora at hand are probed. Training's batches are measured with speed perturbation as well, as most
recipes have it: speeds that the sampler draws, and for comparison speeds that are drawn once the batches are made.
"""

import math
from pathlib import Path

import numpy as np

from benchmarks.material import CORPUS, sound_files
from benchmarks.measure import benchmark_parser, show
from data.epoch_contents import EpochContents
from data.sampler import BatchConfig, DurationBatchSampler
from utils.audio import probe_seconds

SPEEDS = (0.9, 1.0, 1.1)  # of the recipes
WINDOWS = 10  # of an epoch, where it is read from tar shards
Perturbed = list[tuple[np.ndarray, np.ndarray]]  # of each batch, its utterances and their speeds


def like_train_clean_100(size: int, random: np.random.Generator) -> np.ndarray:
    """Three quarters around 14.5 s, a quarter spread below, one in a hundred above."""
    seconds = np.where(random.random(size) < 0.755, random.normal(14.5, 1.3, size), random.uniform(1.4, 13, size))
    seconds = np.where(random.random(size) < 0.01, random.uniform(16, 24.5, size), seconds)
    return seconds.clip(1.4, 24.5)


def like_test_clean(size: int, random: np.random.Generator) -> np.ndarray:
    """Log-normal."""
    return random.lognormal(1.774, 0.68, size).clip(1.3, 35.0)


def waste(seconds: np.ndarray, batches: list[np.ndarray]) -> float:
    """Share of the padded frames that are padding."""
    padded = sum(seconds[batch].max() * len(batch) for batch in batches)
    return 1 - sum(seconds[batch].sum() for batch in batches) / padded


def random_batches(size: int, random: np.random.Generator, batch_size: int = 32) -> list[np.ndarray]:
    """A shuffled epoch in batches of one size."""
    return np.split(random.permutation(size), range(batch_size, size, batch_size))


def our_batches(seconds: np.ndarray, config: BatchConfig, *, shuffle: bool = True, epoch: int = 0,
                windows: int = 1) -> list[np.ndarray]:
    """An epoch of the sampler; of tar shards that are read ten at a time, where it has windows."""
    tars = np.arange(len(seconds)) * 10 * windows // len(seconds)
    contents = EpochContents(seconds, tars=tars, window=math.ceil(len(seconds) / windows))
    sampler = DurationBatchSampler(contents, config, shuffle=shuffle)
    sampler.set_epoch(epoch)
    return [np.array([ref.index for ref in batch]) for batch in sampler]


def perturbed_epoch(seconds: np.ndarray, config: BatchConfig, epoch: int, *, by_sampler: bool) -> Perturbed:
    """Batches and their speeds: the sampler's, or batches for the slowest speed and speeds drawn afterwards."""
    if not by_sampler:
        random, batches = np.random.default_rng(epoch), our_batches(seconds / min(SPEEDS), config, epoch=epoch)
        return [(batch, random.choice(SPEEDS, len(batch))) for batch in batches]
    sampler = DurationBatchSampler(EpochContents(seconds, speeds=SPEEDS), config, shuffle=True)
    sampler.set_epoch(epoch)
    return [(np.array([ref.index for ref in batch]), np.array([ref.speed for ref in batch])) for batch in sampler]


def perturbed_row(name: str, seconds: np.ndarray, config: BatchConfig, *, by_sampler: bool) -> dict:
    """The row of training with speed perturbation."""
    first, second = (perturbed_epoch(seconds, config, epoch, by_sampler=by_sampler) for epoch in range(2))
    lengths = [seconds[batch] / speeds for batch, speeds in first]
    padded = [length.max() * len(length) for length in lengths]
    size, when = str(config).removeprefix("1 process with "), "by the sampler" if by_sampler else "after batching"
    return {"durations": name, "batches": f"ours, {size}, speeds drawn {when}",
            "waste %": 100 * (1 - sum(map(np.sum, lengths)) / sum(padded)), "most padded s": float(max(padded)),
            "batches per epoch": len(first),
            "together again %": 100 * together_again([batch for batch, _ in first], [batch for batch, _ in second])}


def together_again(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """Share of the pairs that share a batch in the one epoch and do so in the other."""
    number = np.empty(sum(map(len, first)), dtype=int)
    for i, batch in enumerate(second):
        number[batch] = i
    again = sum(np.square(np.unique(number[batch], return_counts=True)[1]).sum() - len(batch) for batch in first)
    return float(again / max(1, sum(len(batch) * (len(batch) - 1) for batch in first)))


def rows_of(name: str, seconds: np.ndarray, batch_seconds: float) -> list[dict]:
    """One row for each way to make batches."""
    random = np.random.default_rng(0)
    by_count, by_seconds = BatchConfig(32), BatchConfig(32, batch_seconds)
    shards = f"shards in {WINDOWS} windows, --batch_size 32"
    epochs = {"random batches of 32": [random_batches(len(seconds), random) for _ in range(2)],
              "ours, --batch_size 32": [our_batches(seconds, by_count, epoch=epoch) for epoch in range(2)],
              shards: [our_batches(seconds, by_count, epoch=epoch, windows=WINDOWS) for epoch in range(2)],
              f"ours, --batch_seconds {batch_seconds:g}": [our_batches(seconds, by_seconds, epoch=epoch)
                                                          for epoch in range(2)],
              "ours, evaluation": [our_batches(seconds, by_count, shuffle=False)] * 2}
    return [{"durations": name, "batches": kind, "waste %": 100 * waste(seconds, first),
             "most padded s": float(max(seconds[batch].max() * len(batch) for batch in first)),
             "batches per epoch": len(first), "together again %": 100 * together_again(first, second)}
            for kind, (first, second) in epochs.items()]


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=1)
    parser.add_argument("--corpus", nargs="*", type=Path, default=[CORPUS], help="folders of recordings to probe")
    parser.add_argument("--batch_seconds", type=float, default=400.0, help="about 32 utterances of LibriSpeech")
    parser.add_argument("--utterances", type=int, default=28_539, help="of the training set's likeness")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    durations = {"like train-clean-100": like_train_clean_100(args.utterances, random),
                 "like test-clean": like_test_clean(min(2620, args.utterances), random)}
    for folder in args.corpus:
        durations["/".join(folder.parts[-2:])] = np.array([probe_seconds(path) for path in sound_files(folder)])
    rows = [row for name, seconds in durations.items() for row in rows_of(name, seconds, args.batch_seconds)]
    rows += [perturbed_row(name, seconds, config, by_sampler=by_sampler) for name, seconds in durations.items()
             for config in (BatchConfig(32), BatchConfig(32, args.batch_seconds)) for by_sampler in (True, False)]
    facts = {f"{name}, mean s": round(float(seconds.mean()), 2) for name, seconds in durations.items()}
    show("padding of batches, and pairs that meet again in the next epoch", rows, json_path=args.json, **facts)


if __name__ == "__main__":
    main()
