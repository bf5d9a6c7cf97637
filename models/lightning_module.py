"""`SpeechModule`: trains any `Recognizer` in PyTorch Lightning."""

import math

import lightning
import numpy as np
import torch
from torch import Tensor

from models.optim import GlobalTokenMean, OptimizerConfig, Schedule, build_optimizer
from models.recognizer import Recognizer
from models.skipping import SkipNonFinite
from utils.audio import SAMPLE_RATE
from utils.metrics import ErrorCounts, count_errors
from utils.types import Batch


class SpeechModule(lightning.LightningModule):
    """Training and evaluation steps, metrics and logging around a network that knows none of them.

    Args:
        network: any registered recogniser.
        optimization: its optimiser and schedule.
        seed: every training step's randomness follows from it and the step's own number, so that a
            resumed run draws what the unbroken one would have drawn.
        patience: steps in a row that may be skipped because their gradient is not finite.
    """

    def __init__(self, network: Recognizer, optimization: OptimizerConfig | None = None, *, seed: int = 0,
                 patience: int = 10):
        super().__init__()
        self.network = network
        self.optimization = optimization or OptimizerConfig()
        self.seed, self.patience = seed, patience
        self.token_mean = GlobalTokenMean()
        self.batch_ids: list[str] = []  # utterances of the batch under way
        self.step_ids: list[str] = []  # utterances of the optimiser step under way, of several batches perhaps
        self.batch_tokens = 0  # of the batch under way
        self.batch_seconds = (0.0, 0.0)  # of the batch under way: audio, and audio with padding
        self.results: dict[str, ErrorCounts] = {}  # of the last evaluation, by split
        self._totals: list[_SplitTotals] = []

    # -- training ----------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Takes the training set's feature statistics, unless a checkpoint brought them."""
        features = self.network.features
        if features.feature_norm == "global" and self.trainer.ckpt_path is None and not features.has_statistics:
            batches, device = self.trainer.datamodule.statistics_batches(), features.mean.device
            features.fit_global_statistics((w.to(device), n.to(device)) for w, n in batches)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes the step's random numbers a function of seed, epoch, step and process."""
        self.network.set_step(self.global_step)
        self.batch_ids = batch.ids
        self.step_ids = self.step_ids + batch.ids
        key = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Measures the batch while it is on the CPU, where that stalls no device."""
        padded = batch.waveforms.numel() / SAMPLE_RATE
        self.batch_seconds = batch.sample_counts.sum().item() / SAMPLE_RATE, padded
        self.batch_tokens = int(batch.token_counts.sum())
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss, and logs all losses per token of the global batch, and per token of the epoch."""
        sums = self.network.loss(self.network.encode(batch.waveforms, batch.sample_counts), batch)
        tokens, *means = self._mean_over_processes(torch.stack(
            [batch.token_counts.sum().float(), *(value.detach().float() for value in sums.values())]))
        tokens = self.token_mean.add_batch(tokens)
        for name, mean in zip(sums, means, strict=True):
            self.log(f"train/{name}", mean / tokens, on_step=True, on_epoch=True,
                     batch_size=max(self.batch_tokens, 1), sync_dist=False)
        self.log("loss", (sums["loss"] / tokens).detach(), prog_bar=True, logger=False)
        return self.token_mean.scale_loss(sums["loss"])

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Makes the gradient that of the global batch, clips its norm, and logs the norm before clipping."""
        self.token_mean.scale_gradients(self.parameters(), self.trainer.accumulate_grad_batches)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        self.log("train/grad_norm", norm)
        scaler = self._scaler()
        if scaler is None or scaler.get_scale() <= 1.0:  # while the scaler seeks its scale it skips steps by design
            self.skipping.watch(norm, step=self.global_step, ids=self.step_ids, scaled=scaler is not None)
        self.step_ids = []

    def on_train_epoch_end(self) -> None:
        """Looks at the last steps of the epoch."""
        self.skipping.report()

    def _scaler(self) -> torch.amp.GradScaler | None:
        """Returns float16's gradient scaler, or None under other precisions."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        """Returns the means, without the barrier of Lightning's `reduce`, at which the host would wait."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(values)
        return values / self.trainer.world_size

    # -- optimiser, schedule and checkpoints -------------------------------------------------

    def configure_optimizers(self) -> dict:
        """Makes the optimiser and the schedule, a function of the step."""
        optimizer = build_optimizer(self, self.optimization, fused=self._scaler() is None)
        self.skipping = SkipNonFinite(optimizer, patience=self.patience, look_every=self.trainer.log_every_n_steps)
        schedule = Schedule(optimizer, self.optimization, steps_per_epoch=self._steps_per_epoch(),
                            epochs=self.trainer.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps_per_epoch(self) -> int:
        """Returns the optimiser steps of a whole epoch."""
        total = int(self.trainer.estimated_stepping_batches)  # also makes the loaders
        whole = self.trainer.datamodule.batches_per_epoch
        if whole is None:
            return total // self.trainer.max_epochs
        return math.ceil(whole / self.trainer.accumulate_grad_batches)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Adds what rebuilds the network without any other file, and the optimiser that the states are of."""
        checkpoint["recognizer"] = dict(self.network.config)
        checkpoint["optimizer"] = self.optimization.optimizer

    # -- evaluation --------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begins to count anew, so that nothing carries over from one evaluation to the next."""
        self._totals = [_SplitTotals(self.network.losses) for _ in self.split_names()]

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[str]:
        """Returns the batch's hypotheses, for callbacks that show them."""
        encoding = self.network.encode(batch.waveforms, batch.sample_counts)
        hypotheses = self.network.decode(encoding)
        losses = self.network.loss(encoding, batch)
        self._totals[dataloader_idx].add(losses, batch, count_errors(batch.texts, hypotheses))
        return hypotheses

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Logs each split, and all validation splits pooled as `val/wer`, which chooses checkpoints."""
        pooled = self._log_splits()
        self._log_metrics("val", pooled)
        self.log("val_wer", pooled.errors.wer, prog_bar=True, logger=False)

    def on_test_epoch_end(self) -> None:
        """Logs each test split."""
        self._log_splits()

    def split_names(self) -> list[str]:
        """Returns the splits that are being evaluated, in the order of their loaders."""
        data = self.trainer.datamodule
        return data.test_sets if self.trainer.testing else data.val_sets

    def _log_splits(self) -> "_SplitTotals":
        """Logs each split over all processes, keeps its errors in `results`, and returns the sum of all splits."""
        self.results, pooled = {}, _SplitTotals(self.network.losses)
        for split, totals in zip(self.split_names(), self._totals, strict=True):
            summed = self.trainer.strategy.reduce(totals.to_tensor(self.device), reduce_op="sum")
            pooled.add_tensor(summed)
            whole = _SplitTotals(self.network.losses).add_tensor(summed)
            self.results[split] = whole.errors
            # "val" is the name of all validation splits together, and one metric cannot have two values.
            self._log_metrics("val_set" if split == "val" and len(self._totals) > 1 else split, whole)
        return pooled

    def _log_metrics(self, split: str, totals: "_SplitTotals") -> None:
        metrics = {"wer": totals.errors.wer, "cer": totals.errors.cer}
        metrics |= {name: value / max(totals.tokens, 1) for name, value in totals.losses.items()}
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()},
                      rank_zero_only=False, sync_dist=False)


class _SplitTotals:
    """Sums over a split: losses by name, tokens and ErrorCounts."""

    def __init__(self, losses: tuple[str, ...]):
        self.losses, self.tokens, self.errors = dict.fromkeys(losses, 0.0), 0, ErrorCounts()

    def add(self, losses: dict[str, Tensor], batch: Batch, errors: ErrorCounts) -> None:
        """Adds one batch."""
        for name, value in losses.items():
            self.losses[name] += float(value)
        self.tokens += int(batch.token_counts.sum())
        self.errors += errors

    def to_tensor(self, device: torch.device) -> Tensor:
        """Returns all sums as (len(losses) + 6,) float64, exact for counts below 2 ** 53."""
        return torch.tensor([*self.losses.values(), self.tokens, *self.errors], dtype=torch.float64, device=device)

    def add_tensor(self, sums: Tensor) -> "_SplitTotals":
        """Adds what `to_tensor` gave, and returns itself."""
        *losses, tokens = sums[: len(self.losses) + 1].tolist()
        for name, value in zip(self.losses, losses, strict=True):
            self.losses[name] += value
        self.tokens += round(tokens)
        self.errors += ErrorCounts(*(round(count) for count in sums[len(self.losses) + 1 :].tolist()))
        return self
