"""`LibriSpeechDataModule`: splits by name to loaders of padded batches."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import lightning
import torch

from data import librispeech
from data.dataset import SpeechDataset, SpeechLoader
from data.index import DataError, Index, Utterance, build_index
from data.readers import manifest
from data.sampler import BatchConfig, DurationBatchSampler, EpochSegment, SampleRef
from utils.audio import SAMPLE_RATE
from utils.tokenizer import Tokenizer, ctc_frames_needed

STATISTICS_UTTERANCES = 1000  # enough for a mean and a variance of each mel bin


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
                 tokenizer: Tokenizer, batch_size: int = 16, batch_seconds: float | None = None,
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
        self._resumed: tuple[int, list[EpochSegment]] | None = None  # epoch of a checkpoint, its parts

    def state_dict(self) -> dict:
        """The batches of this run, and where it stands in the epoch."""
        if self._train_loader is None:
            return {}
        sampler = self._train_loader.batch_sampler
        return {"epoch": sampler.epoch, "parts": [(*part.layout, part.batches) for part in self._train_loader.parts],
                "layout": tuple(sampler.layout), "seed": self.seed, "utterances": self._fingerprint()}

    def load_state_dict(self, state: dict) -> None:
        """The epoch of `state` goes on after its batches, in the same or in other ones.

        Raises DataError where what is left of that epoch cannot be told.
        """
        if not state:
            return
        before, now = BatchConfig(*state["layout"]), self._layout()
        parts = [EpochSegment(BatchConfig(*layout), count) for *layout, count in state["parts"]]
        if parts:
            self._refuse_another_epoch(state, changed=before != now)
            self._resumed = state["epoch"], parts
        if before != now and not self._rank():
            where = f"within epoch {state['epoch']}" if parts else f"after epoch {state['epoch']}"
            print(f"going on {where} with {now}; it was {before}", flush=True)

    def _refuse_another_epoch(self, state: dict, *, changed: bool) -> None:
        remedy = "or go on from a checkpoint at the end of an epoch (last.ckpt)"
        if state["seed"] != self.seed:
            raise DataError(f"the checkpoint stands within an epoch that --seed {state['seed']} shuffled, not "
                            f"--seed {self.seed}: give that one, {remedy}")
        if state["utterances"] != self._fingerprint():
            raise DataError(f"the checkpoint stands within an epoch of other training utterances: give those, {remedy}")
        if changed and (self.trainer.limit_train_batches != 1.0 or self.overfit):
            raise DataError("within an epoch that --limit_train_batches or --overfit_batches cuts short, a run goes on "
                            f"with its own --batch_size, --batch_seconds and processes only: give those, {remedy}")

    def _fingerprint(self) -> str:
        """What an epoch's batches depend on: the training utterances and their durations."""
        lines = (f"{utterance.id} {utterance.seconds}" for utterance in self._training_utterances())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _layout(self) -> BatchConfig:
        return BatchConfig(self.batch_size, self.batch_seconds, self.trainer.world_size if self.trainer else 1)

    def _training_utterances(self) -> list[Utterance]:
        return [u for name in self.train_sets for u in self.index(name, training=True).utterances]

    @property
    def seconds_waited(self) -> float:
        """Time that training batches were waited for, so far."""
        return self._train_loader.waited

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches of this process in a whole epoch, where the one under way has others; None where it has not."""
        sampler = self._train_loader.batch_sampler
        return None if len(sampler) == sampler.batches_per_epoch else sampler.batches_per_epoch

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

    def train_dataloader(self) -> SpeechLoader:
        """Shuffled by epoch, all training sets as one.

        An epoch that goes on in other batches has another number of them than the next one, for which
        Lightning is told to ask again.
        """
        self._train_loader = self._loader(self._training_utterances(), shuffle=not self.overfit, speeds=self.speeds,
                                          resumed=self._resumed)
        if self._resumed:
            past = self.trainer.current_epoch > self._resumed[0]
            self._train_loader.batch_sampler.set_epoch(max(self._resumed[0], self.trainer.current_epoch))
            self.trainer.reload_dataloaders_every_n_epochs = int(not past and self.batches_per_epoch is not None)
        return self._train_loader

    def val_dataloader(self) -> list[SpeechLoader]:
        """One loader a validation set, sorted by duration, no utterance twice."""
        return [self._loader(self.index(name).utterances, shuffle=False) for name in self.val_sets]

    def test_dataloader(self) -> list[SpeechLoader]:
        """One loader a test set, sorted by duration, no utterance twice."""
        return [self._loader(self.index(name).utterances, shuffle=False) for name in self.test_sets]

    def statistics_batches(self):
        """`(waveforms, sample_counts)` of a fixed random part of the training sets, the same in every process."""
        utterances = self._training_utterances()
        dataset = SpeechDataset(utterances, self.tokenizer, skip_bad_audio=self.skip_bad_audio)
        chosen = torch.randperm(len(utterances), generator=torch.Generator().manual_seed(self.seed))
        for i in chosen[:STATISTICS_UTTERANCES].tolist():
            _, waveform = dataset[SampleRef(i, seed=0)]
            if waveform is not None:
                yield waveform[None], torch.tensor([len(waveform)])

    def _loader(self, utterances: list[Utterance], *, shuffle: bool, speeds: list[float] = (),
                resumed: tuple[int, list[EpochSegment]] | None = None) -> SpeechLoader:
        dataset = SpeechDataset(utterances, self.tokenizer, speeds=speeds, skip_bad_audio=self.skip_bad_audio)
        try:
            sampler = DurationBatchSampler(
                [utterance.seconds / min(speeds, default=1.0) for utterance in utterances], self._layout(),
                shuffle=shuffle, seed=self.seed, rank=self._rank(), resumed=resumed)
        except ValueError as error:
            remedy = "go on from the end of an epoch (last.ckpt)" if resumed else "a larger split"
            raise DataError(f"{error}; take fewer processes or {remedy}") from None
        return SpeechLoader(dataset, batch_sampler=sampler, num_workers=self.num_workers,
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


def _is_manifest(name: str) -> bool:
    return bool(re.search(r"\.jsonl?$", name))


def _missing(name: str, root: Path) -> str:
    return (f"no split {name!r} under {root}: --data_root must hold a folder of that name in LibriSpeech layout; "
            f"subsets that can be downloaded are {', '.join(librispeech.SHA256)}")
