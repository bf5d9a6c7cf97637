"""`LibriSpeechDataModule`: splits by name to loaders of padded batches."""

import re
from collections.abc import Callable
from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from data import librispeech, manifest
from data.index import DataError, Index, Utterance, build_index
from data.sampler import Draw, DurationBatchSampler
from utils.audio import SAMPLE_RATE, AudioError, load_audio, resample
from utils.batch import Batch
from utils.text import CharTokenizer, ctc_frames_needed

STATISTICS_UTTERANCES = 1000  # enough for a mean and a variance of each mel bin


class SpeechDataset(Dataset):
    """Utterances to waveforms and tokens; stateless, so that any worker gives the same answer.

    Args:
        speeds: factors of speed perturbation (Ko et al. 2015), one drawn for each reading; none by default.
        skip_bad_audio: leave a file that cannot be read out of its batch, instead of stopping the run.
    """

    def __init__(self, utterances: list[Utterance], tokenizer: CharTokenizer, *, speeds: list[float] = (),
                 skip_bad_audio: bool = False):
        self.utterances, self.tokenizer = utterances, tokenizer
        self.speeds, self.skip_bad_audio = tuple(speeds), skip_bad_audio

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, draw: Draw) -> tuple[Utterance, Tensor | None]:
        """The utterance and its (S,) waveform; None where it was bad and may be skipped."""
        utterance = self.utterances[draw.index]
        try:
            return utterance, self._perturb(load_audio(utterance.audio), draw.seed)
        except AudioError:
            if not self.skip_bad_audio:
                raise
            return utterance, None

    def __getitems__(self, draws: list[Draw]) -> Batch | AudioError | DataError:
        """A batch, or why there is none, for SpeechLoader to raise."""
        try:
            return self.collate([self[draw] for draw in draws])
        except (AudioError, DataError) as error:
            return error

    def collate(self, items: list[tuple[Utterance, Tensor | None]]) -> Batch:
        """Pads with zeros at the end. Raises DataError where no file of the batch can be read."""
        good = [(utterance, waveform) for utterance, waveform in items if waveform is not None]
        bad = [utterance.audio for utterance, waveform in items if waveform is None]
        if not good:
            raise DataError(f"none of the {len(bad)} files of a batch can be read: {', '.join(bad[:3])}")
        tokens = [torch.tensor(utterance.tokens) for utterance, _ in good]
        return Batch(
            waveforms=pad_sequence([waveform for _, waveform in good], batch_first=True),
            sample_counts=torch.tensor([len(waveform) for _, waveform in good]),
            tokens=pad_sequence(tokens, batch_first=True, padding_value=self.tokenizer.blank),
            token_counts=torch.tensor([len(t) for t in tokens]),
            texts=[utterance.text for utterance, _ in good],
            ids=[utterance.id for utterance, _ in good],
            skipped=bad,
        )

    def _perturb(self, waveform: Tensor, seed: int) -> Tensor:
        """Faster or slower by resampling, which moves the pitch along."""
        if not self.speeds:
            return waveform
        speed = self.speeds[seed % len(self.speeds)]
        return resample(waveform, round(SAMPLE_RATE * speed), SAMPLE_RATE)


class SpeechLoader(DataLoader):
    """Batches of a SpeechDataset, and how many of the epoch under way were given out.

    Raises AudioError and DataError as they were, from workers too: torch would make another exception of
    them, with a traceback for its message.
    """

    done = 0  # batches of the epoch under way that were given out

    def __iter__(self):
        self.done = self.batch_sampler.skip
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                try:
                    raise batch
                finally:
                    del batch  # its traceback would keep this frame, and with it the workers
            self.done += 1
            yield batch
        self.done = 0


class LibriSpeechDataModule(lightning.LightningDataModule):
    """LibriSpeech's subsets, folders in its layout, or JSON-lines manifests, by name.

    A split is a manifest (a path that ends in .json or .jsonl), a folder under `data_root`, or one
    of LibriSpeech's subsets, which is downloaded where it is missing.

    Args:
        data_root: where the corpora stand.
        train_sets, val_sets, test_sets: splits by name.
        tokenizer: spells the transcripts.
        batch_size, batch_seconds: see DurationBatchSampler.
        num_workers: processes that read audio.
        speeds: speed perturbation in training.
        output_frames: samples to output frames of a network that needs as many frames as CTC does;
            training utterances with fewer are left out. None keeps all.
        skip_bad_audio: see SpeechDataset.
        overfit: train and validate on the training sets in one fixed order.
        cache_dir: durations of files, from one run to the next.
        url: where the archives of LibriSpeech are.
    """

    def __init__(self, *, data_root: str, train_sets: list[str], val_sets: list[str], test_sets: list[str],
                 tokenizer: CharTokenizer, batch_size: int = 16, batch_seconds: float | None = None,
                 num_workers: int = 4, speeds: list[float] = (), seed: int = 0,
                 output_frames: Callable[[int], int] | None = None, skip_bad_audio: bool = False,
                 overfit: bool = False, cache_dir: str = ".cache/index", url: str = librispeech.URL):
        super().__init__()
        self.data_root, self.cache_dir = Path(data_root).expanduser(), Path(cache_dir).expanduser()
        self.train_sets, self.test_sets = list(train_sets), list(test_sets)
        self.val_sets = self.train_sets if overfit else list(val_sets)
        self.tokenizer, self.output_frames = tokenizer, output_frames
        self.batch_size, self.batch_seconds, self.seed = batch_size, batch_seconds, seed
        self.num_workers, self.speeds = num_workers, speeds
        self.skip_bad_audio, self.overfit, self.url = skip_bad_audio, overfit, url
        self._indexes: dict[tuple[str, bool], Index] = {}
        self._train_loader: SpeechLoader | None = None
        self._resumed: dict = {}  # of a checkpoint within an epoch

    def state_dict(self) -> dict:
        """Where training stands in the epoch: batches that every process had, and what made them."""
        if self._train_loader is None:
            return {}
        done = self._train_loader.done % len(self._train_loader)  # all of them is none of the next epoch
        return {"batches": done, **self._batching()}

    def load_state_dict(self, state: dict) -> None:
        """The first epoch begins after the batches of `state`. Raises DataError where these would be others."""
        self._resumed = state
        if state.get("batches") and (now := self._batching()) != {name: state[name] for name in now}:
            raise DataError(f"the checkpoint stands within an epoch of other batches, {state}, not {now}: go on with "
                            "the same flags and processes, or from a checkpoint at the end of an epoch")

    def _batching(self) -> dict:
        return {"batch_size": self.batch_size, "batch_seconds": self.batch_seconds, "seed": self.seed,
                "processes": self.trainer.world_size if self.trainer else 1}

    def prepare_data(self) -> None:
        """Downloads and indexes, in one process a machine; the others find it done."""
        for name in dict.fromkeys(self.train_sets + self.val_sets + self.test_sets):
            if self._is_missing(name):
                self._download(name)
        if not self._indexes:
            for index in self.indexes():
                print(index, flush=True)

    def indexes(self) -> list[Index]:
        """The index of every split that is asked for."""
        return ([self.index(name, training=True) for name in self.train_sets]
                + [self.index(name) for name in dict.fromkeys(self.val_sets + self.test_sets)])

    def index(self, name: str, *, training: bool = False) -> Index:
        """The usable utterances of a split. Raises DataError."""
        training = training or (self.overfit and name in self.train_sets)
        key = (name, training)
        if key not in self._indexes:
            entries, faults = self._list(name)
            index = build_index(name, entries, faults, self.tokenizer, self.cache_dir)
            self._indexes[key] = self._long_enough(index) if training else index
        return self._indexes[key]

    def train_dataloader(self) -> DataLoader:
        """Shuffled by epoch, all training sets as one."""
        utterances = [u for name in self.train_sets for u in self.index(name, training=True).utterances]
        self._train_loader = self._loader(utterances, shuffle=not self.overfit, speeds=self.speeds)
        self._train_loader.batch_sampler.skip = self._resumed.get("batches", 0)
        return self._train_loader

    def val_dataloader(self) -> list[DataLoader]:
        """One loader a dev set, sorted by duration, no utterance twice."""
        return [self._loader(self.index(name).utterances, shuffle=False) for name in self.val_sets]

    def test_dataloader(self) -> list[DataLoader]:
        """One loader a test set, sorted by duration, no utterance twice."""
        return [self._loader(self.index(name).utterances, shuffle=False) for name in self.test_sets]

    def statistics_batches(self):
        """`(waveforms, sample_counts)` of a fixed random part of the training sets, the same in every process."""
        utterances = [u for name in self.train_sets for u in self.index(name, training=True).utterances]
        dataset = SpeechDataset(utterances, self.tokenizer, skip_bad_audio=self.skip_bad_audio)
        chosen = torch.randperm(len(utterances), generator=torch.Generator().manual_seed(self.seed))
        for i in chosen[:STATISTICS_UTTERANCES].tolist():
            _, waveform = dataset[Draw(i, seed=0)]
            if waveform is not None:
                yield waveform[None], torch.tensor([len(waveform)])

    def _loader(self, utterances: list[Utterance], *, shuffle: bool, speeds: list[float] = ()) -> DataLoader:
        dataset = SpeechDataset(utterances, self.tokenizer, speeds=speeds, skip_bad_audio=self.skip_bad_audio)
        try:
            sampler = DurationBatchSampler(
                [utterance.seconds / min(speeds, default=1.0) for utterance in utterances], batch_size=self.batch_size,
                batch_seconds=self.batch_seconds, shuffle=shuffle, seed=self.seed, rank=self._rank(),
                world_size=self.trainer.world_size if self.trainer else 1)
        except ValueError as error:
            raise DataError(f"{error}; take fewer processes or a larger split") from None
        return SpeechLoader(dataset, batch_sampler=sampler, collate_fn=_as_is, num_workers=self.num_workers,
                            pin_memory=torch.cuda.is_available(), persistent_workers=self.num_workers > 0)

    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _list(self, name: str):
        if _is_manifest(name):
            path = Path(name) if Path(name).is_file() else self.data_root / name
            return manifest.list_entries(path)
        folder = librispeech.find_split(self.data_root, name)
        if folder is None:
            raise DataError(_missing(name, self.data_root))
        return librispeech.list_entries(folder)

    def _is_missing(self, name: str) -> bool:
        return not _is_manifest(name) and librispeech.find_split(self.data_root, name) is None

    def _download(self, name: str) -> None:
        if name not in librispeech.SHA256:
            raise DataError(_missing(name, self.data_root))
        librispeech.download_subset(name, self.data_root, url=self.url)

    def _long_enough(self, index: Index) -> Index:
        """Leaves out utterances whose text needs more frames than the network would give."""
        if self.output_frames is None:
            return index
        kept, short = [], []
        fastest = max(self.speeds, default=1.0)
        for utterance in index.utterances:
            frames = self.output_frames(int(utterance.seconds * SAMPLE_RATE / fastest))
            fits = frames >= ctc_frames_needed(utterance.tokens)
            (kept if fits else short).append(utterance)
        if short:
            index.left_out["with more text than output frames"] = [utterance.id for utterance in short]
        index.utterances = kept
        if not kept:
            raise DataError(f"nothing to train on in {index}; a smaller --time_stride gives more frames")
        return index


def _as_is(batch):
    """The dataset collates."""
    return batch


def _is_manifest(name: str) -> bool:
    return bool(re.search(r"\.jsonl?$", name))


def _missing(name: str, root: Path) -> str:
    return (f"no split {name!r} under {root}: --data_root must hold a folder of that name in LibriSpeech layout; "
            f"subsets that can be downloaded are {', '.join(librispeech.SHA256)}")
