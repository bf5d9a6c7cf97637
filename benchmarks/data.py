"""How fast does one core read audio in batches, and turn it into log-mel features?

    python -m benchmarks.data
    python -m benchmarks.data --corpus FOLDER

The recordings of a corpus are joined to FLAC files of 4 to 17 s, which soundfile decodes one by one, and the
loader of training, without workers, as padded float32 batches of like durations, from these files and from a tar that
holds them. Then features on top: torchaudio's MelSpectrogram on each utterance, and the network's own on each batch.
Last, the loader with each augmentation of training for every utterance.
"""

import tarfile
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio.transforms import MelSpectrogram

from benchmarks.material import CORPUS, write_joined
from benchmarks.measure import benchmark_parser, clock_of, medians, prepare, show
from data.augment import Augmentation
from data.dataset import SpeechDataset, SpeechLoader
from data.epoch_contents import EpochContents
from data.epoch_progress import EpochProgress
from data.options import AugmentationOptions
from data.sampler import BatchConfig, DurationBatchSampler
from data.utterances import Utterance
from models.components.features.logmel import FLOOR, LogMel
from utils.files.members import Member
from utils.process import keep_large_blocks
from utils.tokenizer import CharTokenizer

AUGMENTED = {"noise": {"noise_db": [5.0, 40.0]}, "rooms": {"reverb_share": 1.0}, "tilt": {"tilt": 0.35},
             "telephone": {"telephone_share": 1.0}, "gain": {"gain_db": [-15.0, 5.0]}}


def pack(paths: list[Path], tar: Path) -> list[Member]:
    """Puts the files into one tar shard."""
    with tarfile.open(tar, "w") as archive:
        for path in paths:
            archive.add(path, path.name)
    with tarfile.open(tar) as archive:
        return [Member(str(tar), one.offset_data, one.size) for one in archive]


def loader(paths: list[Path | Member], seconds: list[float], *, batch_size: int, **augmented) -> SpeechLoader:
    """Training's loader over these files, without workers."""
    tokenizer = CharTokenizer()
    utterances = [Utterance(str(path), str(path), "a", tokenizer.encode("a"), duration, "")
                  for path, duration in zip(paths, seconds, strict=True)]
    batches = DurationBatchSampler(EpochContents(seconds), BatchConfig(batch_size), shuffle=True)
    augment = Augmentation(AugmentationOptions(**augmented), Path(str(paths[0])).parent)
    return SpeechLoader(SpeechDataset(utterances, tokenizer, augment=augment), EpochProgress(batches), num_workers=0)


def cases_of(paths: list[Path], seconds: list[float], batch_size: int) -> dict:
    """Returns the functions to time, each of which reads all files once."""
    plain, ours = loader(paths, seconds, batch_size=batch_size), LogMel()
    sharded = loader(pack(paths, paths[0].with_name("shard.tar")), seconds, batch_size=batch_size)
    everything = {name: value for options in AUGMENTED.values() for name, value in options.items()}
    augmented = {name: loader(paths, seconds, batch_size=batch_size, **options)
                 for name, options in {**AUGMENTED, "all augmentations": everything}.items()}
    theirs = MelSpectrogram(16_000, n_fft=512, win_length=400, hop_length=160, n_mels=80)

    def read() -> None:
        for path in paths:
            soundfile.read(path, dtype="float32")

    def load(batches: SpeechLoader = plain) -> None:
        for _ in batches:
            pass

    @torch.inference_mode()
    def load_and_extract() -> None:
        for batch in plain:
            ours(batch.waveforms, batch.sample_counts)

    @torch.inference_mode()
    def read_and_extract() -> None:
        for path in paths:
            theirs(torch.from_numpy(soundfile.read(path, dtype="float32")[0])).clamp_min(FLOOR).log()

    return {"soundfile": read, "loader": load, "loader, from a tar shard": partial(load, sharded),
            "soundfile + torchaudio's log-mel": read_and_extract, "loader + log-mel, normalised": load_and_extract,
            **{f"loader + {name}": partial(load, batches) for name, batches in augmented.items()}}


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=7)
    parser.set_defaults(threads=1)
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder of recordings")
    parser.add_argument("--utterances", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args()
    prepare(args)
    keep_large_blocks()  # as training does
    seconds = np.random.default_rng(0).triangular(4.0, 15.0, 17.0, args.utterances).round(2).tolist()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_joined(Path(folder), seconds, args.corpus)
        found = medians(cases_of(paths, seconds, args.batch_size), rounds=args.rounds, clock=clock_of(args))
    hours = sum(seconds) / 3600
    rows = [{"what": name, "hours a second": hours / taken, "of soundfile": found["soundfile"] / taken}
            for name, taken in found.items()]
    show(f"FLAC to batches and to features, {args.utterances} utterances, {60 * hours:.0f} min", rows,
         json_path=args.json)


if __name__ == "__main__":
    main()
