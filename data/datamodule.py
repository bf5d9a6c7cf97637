"""`LibriSpeechDataModule`: splits by name to loaders of padded batches."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path

import lightning
import torch
from torch import Tensor

from data import readers
from data.augment import Augmentation
from data.dataset import SpeechDataset, SpeechLoader
from data.epoch_contents import EpochContents, SetShare
from data.epoch_progress import EpochProgress, EpochState
from data.index import DataError, Index, build_index
from data.options import TrainingDataOptions
from data.sampler import BatchConfig, DurationBatchSampler, SampleRef
from data.utterances import Utterances
from utils.audio import SAMPLE_RATE
from utils.errors import printable
from utils.files.locks import waiting_lock
from utils.normalizers import NORMALIZERS
from utils.process import is_first_process
from utils.tokenizer import Tokenizer, ctc_frames_needed

STATISTICS_UTTERANCES = 1000  # enough for a mean and a variance of each mel bin


class LibriSpeechDataModule(lightning.LightningDataModule):
    """LibriSpeech's subsets, and splits of any kind that has a reader, by name.

    A subset of LibriSpeech that is missing is downloaded.

    Args:
        options: what the user says of the data.
        tokenizer: encodes the transcripts.
        output_frames: samples to output frames of a network that needs as many frames as CTC does;
            training utterances with fewer are left out. None keeps all.
        overfit: train and validate on the training sets, each once, in one fixed order.

    Raises DataError where a folder of noises or impulse responses has none that can be read.
    """

    def __init__(self, options: TrainingDataOptions, tokenizer: Tokenizer, *,
                 output_frames: Callable[[int], int] | None = None, overfit: bool = False):
        super().__init__()
        self.options, self.tokenizer = options, tokenizer
        self.output_frames, self.overfit = output_frames, overfit
        self.data_root, self.cache_dir = Path(options.data_root).expanduser(), Path(options.cache_dir).expanduser()
        self.train_sets = [name for name, _ in options.train_factors()]
        self.factors = [1.0 if overfit else factor for _, factor in options.train_factors()]
        self.test_sets = list(options.test_sets)
        self.val_sets = self.train_sets if overfit else list(options.val_sets)
        self.augmentation = Augmentation(options, self.cache_dir)
        self._indexes: dict[tuple[str, bool], Index] = {}
        self._train_loader: SpeechLoader | None = None
        self._resumed: EpochState | None = None

    # -- preparation ---------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Downloads and indexes what is missing, in one process; others that share the disk wait for it.

        May be called before processes are connected, which would wait for each other for half an hour at most.
        """
        names = dict.fromkeys(self.train_sets + self.val_sets + self.test_sets)
        readers.download_missing(self.data_root, names, url=self.options.librispeech_url)
        if self._indexes:
            return
        with suppress(OSError):  # a cache that cannot be written costs time, not the run
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        with waiting_lock(self.cache_dir / ".lock", "the durations of recordings are being read"):
            for index in self.indexes():
                if is_first_process():
                    print(index, flush=True)
        if is_first_process() and set(self.factors) - {1.0}:
            print(self._describe_mix(), flush=True)

    def setup(self, stage: str) -> None:
        """Raises DataError, before anything is trained, where a split has fewer utterances than there are processes."""
        processes = self._batch_config().processes
        for name in dict.fromkeys(self.val_sets + self.test_sets):
            count = len(self.index(name).utterances)
            if count < processes:
                raise DataError(f"{name}: {count} utterances cannot be shared by {processes} processes; take fewer "
                                "processes or a larger split")
        if processes > 1:
            self._refuse_other_utterances(training=stage == "fit")

    def _refuse_other_utterances(self, *, training: bool) -> None:
        """Raises DataError in a process that found other utterances than the first, and so would draw other batches."""
        ids = chain.from_iterable(self.index(name).utterances.ids() for name in self.val_sets + self.test_sets)
        digest = hashlib.sha256("\n".join(ids).encode()).hexdigest() + (self._fingerprint if training else "")
        if self.trainer.strategy.broadcast(digest) != digest:
            raise DataError(f"{self.data_root}: process {self._rank()} finds other utterances there than the first "
                            "one does; every machine must see the same corpora")

    def indexes(self) -> list[Index]:
        """Returns the index of every split that is asked for."""
        return ([self.index(name, training=True) for name in self.train_sets]
                + [self.index(name) for name in dict.fromkeys(self.val_sets + self.test_sets)])

    def index(self, name: str, *, training: bool = False) -> Index:
        """Returns the usable utterances of a split. Raises DataError."""
        training = training or (self.overfit and name in self.train_sets)
        key = (name, training)
        if key not in self._indexes:
            entries, faults = readers.list_split(self.data_root, name)
            index = build_index(name, entries, faults, self.tokenizer, self.cache_dir,
                                normalizer=NORMALIZERS[self.options.text_normalizer])
            self._indexes[key] = self._long_enough(index) if training else index
        return self._indexes[key]

    def _describe_mix(self) -> str:
        """Returns a line that says which share of an epoch's audio is of each training set."""
        indexes = [self.index(name, training=True) for name in self.train_sets]
        hours = [factor * index.utterances.seconds.sum() / 3600
                 for index, factor in zip(indexes, self.factors, strict=True)]
        shares = [f"{one} {100 * part / sum(hours):.1f} %"
                  for one, part in zip(self.options.train_sets, hours, strict=True)]
        return printable(f"each epoch: {sum(hours):.2f} h, of which {', '.join(shares)}")

    def _long_enough(self, index: Index) -> Index:
        """Leaves out utterances whose text needs more frames than the network would give."""
        if self.output_frames is None:
            return index
        kept, short = [], []  # places, and ids
        fastest = max(self.options.speed_perturb, default=1.0)
        for place, utterance in enumerate(index.utterances):
            frames = self.output_frames(int(utterance.seconds * SAMPLE_RATE / fastest))
            if frames >= ctc_frames_needed(utterance.tokens):
                kept.append(place)
            else:
                short.append(utterance.id)
        if short:
            index.left_out["with more text than output frames"] = short
            index.utterances = index.utterances.take(kept)
        if not kept:
            raise DataError(f"nothing to train on in {index}; a network with more output frames per second takes them")
        return index

    # -- loaders -------------------------------------------------------------------------------

    def train_dataloader(self) -> SpeechLoader:
        """Returns all training sets as one, shuffled by epoch.

        An epoch that goes on in other batches has another number of them than the next one, for which
        Lightning is told to ask again.
        """
        self._train_loader = self._loader(self._training_utterances, training=True)
        self._refuse_less_than_a_batch()
        if self._resumed:
            past = self.trainer.current_epoch > self._resumed.epoch
            self._train_loader.batch_sampler.set_epoch(max(self._resumed.epoch, self.trainer.current_epoch))
            self.trainer.reload_dataloaders_every_n_epochs = int(not past and self.batches_per_epoch is not None)
        return self._train_loader

    def _refuse_less_than_a_batch(self) -> None:
        limit, batches = self.trainer.limit_train_batches if self.trainer else 1.0, len(self._train_loader)
        if isinstance(limit, float) and limit * batches < 1:
            flag = "--overfit_batches" if self.overfit else "--limit_train_batches"
            raise DataError(f"{flag} {limit} of {batches} batches is less than one")

    def val_dataloader(self) -> list[SpeechLoader]:
        """Returns one loader per validation set, sorted by duration, no utterance twice."""
        return [self._loader(self.index(name).utterances) for name in self.val_sets]

    def test_dataloader(self) -> list[SpeechLoader]:
        """Returns one loader per test set, sorted by duration, no utterance twice."""
        return [self._loader(self.index(name).utterances) for name in self.test_sets]

    def statistics_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields `(waveforms, sample_counts)` of a fixed random part of the training sets, in all processes alike."""
        utterances = self._training_utterances
        dataset = SpeechDataset(utterances, self.tokenizer, skip_bad_audio=self.options.skip_bad_audio)
        chosen = torch.randperm(len(utterances), generator=torch.Generator().manual_seed(self.options.seed))
        for i in chosen[:STATISTICS_UTTERANCES].tolist():
            _, waveform = dataset[SampleRef(i, seed=0)]
            if waveform is not None:
                yield waveform[None], torch.tensor([len(waveform)])

    @property
    def seconds_waited(self) -> float:
        """Time that training batches were waited for, so far."""
        return self._train_loader.waited

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches of this process in a whole epoch, where the one under way has others; None where it has not."""
        progress = self._train_loader.batch_sampler
        return None if len(progress) == progress.batches_per_epoch else progress.batches_per_epoch

    def _loader(self, utterances: Utterances, *, training: bool = False) -> SpeechLoader:
        options, resumed = self.options, self._resumed if training else None
        dataset = SpeechDataset(utterances, self.tokenizer, skip_bad_audio=options.skip_bad_audio,
                                augment=self.augmentation if training else None)
        contents = self._training_contents if training else EpochContents(utterances.seconds, seed=options.seed)
        try:
            batches = DurationBatchSampler(contents, self._batch_config(), shuffle=training and not self.overfit,
                                           rank=self._rank())
            progress = EpochProgress(batches, resumed.epoch, resumed.segments) if resumed else EpochProgress(batches)
        except ValueError as error:
            remedy = "go on from the end of an epoch (last.ckpt)" if resumed else "a larger split"
            raise DataError(f"{error}; take fewer processes or {remedy}") from None
        # Pinning opens a CUDA context, so it waits until a trainer on a GPU asks.
        pin_memory = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return SpeechLoader(dataset, progress, num_workers=options.num_workers, pin_memory=pin_memory,
                            persistent_workers=options.num_workers > 0)

    # -- where a run stands --------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Returns the batches of this run, and where it stands in the epoch."""
        if self._train_loader is None:
            return {}
        progress = self._train_loader.batch_sampler
        return self._state()._replace(epoch=progress.epoch, segments=progress.segments_so_far()).plain()

    def load_state_dict(self, state: dict) -> None:
        """Makes the epoch of `state` go on after its batches, in the same or in other ones.

        Raises DataError where what is left of that epoch cannot be told.
        """
        if not state:
            return
        before, now = EpochState.load(state), self._state()
        before.check(now, cut_short=self.trainer.limit_train_batches != 1.0 or self.overfit)
        if before.segments:
            self._resumed = before
        if before.config != now.config and not self._rank():
            where = f"within epoch {before.epoch}" if before.segments else f"after epoch {before.epoch}"
            print(f"going on {where} with {now.config}; it was {before.config}", flush=True)

    def _state(self) -> EpochState:
        """Returns this run's state before its first epoch."""
        return EpochState(0, [], self._batch_config(), self.options.seed, self._fingerprint,
                          self.options.text_normalizer)

    @cached_property
    def _fingerprint(self) -> str:
        utterances, contents = self._training_utterances, self._training_contents
        settings = [str(share) for share in self._shares() if set(self.factors) - {1.0}]
        settings += [f"speed {speed}" for speed in sorted(self.options.speed_perturb)]
        if contents.windows > 1:
            settings += [f"{contents.windows} windows of {contents.tars.tolist()}"]
        lines = chain((f"{id} {seconds}" for id, seconds in zip(utterances.ids(), utterances.seconds.tolist(),
                                                              strict=True)), settings)
        digest = hashlib.sha256(next(lines).encode())
        for line in lines:
            digest.update(f"\n{line}".encode())
        return digest.hexdigest()

    @cached_property
    def _training_contents(self) -> EpochContents:
        options, utterances = self.options, self._training_utterances
        return EpochContents(utterances.seconds, self._shares(), speeds=options.speed_perturb, seed=options.seed,
                             tars=utterances.tars(), window=options.shard_window)

    @cached_property
    def _training_utterances(self) -> Utterances:
        parts = [self.index(name, training=True).utterances for name in self.train_sets]
        return parts[0] if len(parts) == 1 else Utterances.join(parts, self.tokenizer)

    def _shares(self) -> list[SetShare]:
        return [SetShare(len(self.index(name, training=True).utterances), factor)
                for name, factor in zip(self.train_sets, self.factors, strict=True)]

    def _batch_config(self) -> BatchConfig:
        return BatchConfig(self.options.batch_size, self.options.batch_seconds,
                           self.trainer.world_size if self.trainer else 1)

    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0
