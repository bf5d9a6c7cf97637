"""How long do the index and an epoch's plan of a corpus of thousands of hours take, and how much memory?

    python -m benchmarks.large_corpus
    python -m benchmarks.large_corpus --hours 1000

Tar shards of 1,000 utterances as `python -m data.shard` writes them, but without audio: the tars are holes of the right
size with whole indexes. Durations are like train-clean-100's (12.4 s on average), texts as long. Each row is a stage of
a training run before its first step, in processor time, and the most memory that the process held so far.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.measure import benchmark_parser, peak_memory, prepare, show
from benchmarks.padding import like_train_clean_100
from data.datamodule import LibriSpeechDataModule
from data.options import TrainingDataOptions
from data.readers.shards import INDEX, state_of
from models import Recognizer
from utils.tokenizer import CharTokenizer

PER_SHARD = 1000
BYTES, LETTERS = 16_500, 14.6  # per second of audio, of FLAC and of text


def write_shards(folder: Path, seconds: np.ndarray) -> None:
    """Writes tars without content, and the indexes that say what lies in them."""
    words = np.array("the of and to a in he was that his it had with as i her for she not but at on you be".split())
    random = np.random.default_rng(0)
    text = " ".join(random.choice(words, 20_000))
    for number, part in enumerate(np.array_split(seconds, range(PER_SHARD, len(seconds), PER_SHARD))):
        tar = folder / f"shard-{number:06d}.tar"
        ends = np.cumsum((part * BYTES).astype(int) + 2048)
        with open(tar, "wb") as file:
            file.truncate(int(ends[-1]))
        starts = random.integers(0, len(text) - 600, len(part))
        rows = [[f"{number}-{i}-{number:04d}{i:05d}", text[start : start + int(duration * LETTERS)].strip(), f"{i}",
                 int(end - duration * BYTES), int(duration * BYTES), float(duration)]
                for i, (duration, end, start) in enumerate(zip(part, ends, starts, strict=True))]
        tar.with_suffix(INDEX).write_text(json.dumps({"state": state_of(tar), "utterances": rows, "left_out": {}}))


def stages(folder: Path) -> dict[str, Callable[[], object]]:
    """Returns what a run does before its first step, in order."""
    options = TrainingDataOptions(
        data_root=str(folder), train_sets=["shards"], val_sets=[], test_sets=[], speed_perturb=[0.9, 1.0, 1.1],
        batch_seconds=400.0, num_workers=0, cache_dir=str(folder / "cache"))
    network = Recognizer.build("deepspeech2")
    data = LibriSpeechDataModule(options, CharTokenizer(), output_frames=network.output_frames)
    return {"index": data.prepare_data, "loader": data.train_dataloader, "fingerprint": data.state_dict,
            "plan of an epoch": lambda: next(iter(data.train_dataloader().batch_sampler)),
            "all batches of an epoch": lambda: sum(1 for _ in data.train_dataloader().batch_sampler)}


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=1)
    parser.add_argument("--hours", type=float, default=10_000)
    args = parser.parse_args()
    prepare(args)
    seconds = like_train_clean_100(round(args.hours * 3600 / 12.4), np.random.default_rng(0)).round(3)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shards").mkdir()
        write_shards(Path(folder) / "shards", seconds)
        before = peak_memory()
        for name, stage in stages(Path(folder)).items():
            started, wall = time.process_time(), time.perf_counter()
            stage()
            rows.append({"what": name, "processor s": time.process_time() - started,
                         "wall s": time.perf_counter() - wall, "peak GB": peak_memory() / 1e9})
    show(f"before the first step of {seconds.sum() / 3600:,.0f} hours, {len(seconds):,} utterances", rows,
         json_path=args.json, **{"GB before": round(before / 1e9, 2)})


if __name__ == "__main__":
    main()
