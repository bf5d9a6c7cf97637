"""`SpeechModule`: trains any `Recognizer` in PyTorch Lightning."""

import math

import lightning
import numpy as np
import torch
from torch import Tensor

from models.recognizer import Recognizer
from utils.audio import SAMPLE_RATE
from utils.errors import UserError
from utils.metrics import ErrorCounts, count_errors
from utils.types import Batch


class TrainingError(UserError):
    """A run that cannot go on."""


class SpeechModule(lightning.LightningModule):
    """Optimiser, schedule, steps, metrics and logging around a network that knows none of them.

    Args:
        network: any registered recogniser.
        learning_rate: peak of the schedule.
        warmup_steps: optimiser steps of linear warm-up; a cosine then falls to 1 % of the peak.
        weight_decay: of AdamW, for matrices and filters only.
        seed: every training step's randomness follows from it and the step's own number, so that a
            resumed run draws what the unbroken one would have drawn.
        patience: steps in a row that may be skipped because their gradient is not finite.
    """

    def __init__(self, network: Recognizer, *, learning_rate: float = 3e-4, warmup_steps: int = 1000,
                 weight_decay: float = 1e-2, seed: int = 0, patience: int = 10):
        super().__init__()
        self.network = network
        self.learning_rate, self.warmup_steps, self.weight_decay = learning_rate, warmup_steps, weight_decay
        self.seed, self.patience = seed, patience
        self.skipped, self.skipped_in_a_row = 0, 0  # steps
        self.steps_before = 0.0  # the step's place in the schedule, less the step: see `configure_optimizers`
        self._resumed: dict = {}  # what a checkpoint says of the schedule
        self._norms: list[tuple[int, Tensor, list[str]]] = []  # of the gradients of steps not yet looked at
        self._window: list[Tensor] = []  # characters of the batches of the step under way, mean over processes
        self.batch_ids: list[str] = []  # utterances of the batch under way
        self.results: dict[str, ErrorCounts] = {}  # of the last evaluation, by split
        self._totals: list[_SplitTotals] = []
        self.batch_seconds = (0.0, 0.0)  # of the batch under way: audio, and audio with padding

    # -- training ----------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Takes the training set's feature statistics, unless a checkpoint brought them."""
        if self.network.features.feature_norm == "global" and self.trainer.ckpt_path is None:
            device = self.network.features.mean.device
            batches = self.trainer.datamodule.statistics_batches()
            self.network.features.fit_global_statistics((w.to(device), n.to(device)) for w, n in batches)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes the step's random numbers a function of seed, epoch, step and process."""
        self.network.schedule(self.global_step)
        self.batch_ids = batch.ids
        key = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Measures the batch while it is on the CPU, where that stalls no device."""
        padded = batch.waveforms.numel() / SAMPLE_RATE
        self.batch_seconds = batch.sample_counts.sum().item() / SAMPLE_RATE, padded
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss per character, whose gradient `configure_gradient_clipping` makes that of the whole step."""
        sums = self.network.loss(self.network.encode(batch.waveforms, batch.sample_counts), batch)
        tokens = self._mean_over_processes(batch.token_counts.sum().float()).clamp_min(1.0)
        self._window.append(tokens)
        losses = {name: value / tokens for name, value in sums.items()}
        size = len(batch.ids)
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), on_step=True, on_epoch=True, batch_size=size, sync_dist=True)
        self.log("loss", losses["loss"].detach(), prog_bar=True, logger=False)
        return sums["loss"] / self._window[0]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        """Clips the norm of all gradients together, and logs it as it was before.

        A step whose gradient is not finite leaves the weights and the optimiser as they are. The device sees to
        that itself: a host that asked for the norm would stall it at every step.
        """
        self._normalize_gradients()
        norm = self._clip(gradient_clip_val or math.inf)
        self.log("train/grad_norm", norm)
        optimizer = self.optimizers(use_pl_optimizer=False)
        if self._scaler() is not None:  # which skips such a step itself; while it seeks its scale they are expected
            if self._scaler().get_scale() > 1.0:
                return
        else:
            optimizer.found_inf = norm.isfinite().logical_not().float()
        self._norms.append((self.global_step, norm, self.batch_ids))
        if norm.device.type == "cpu" or len(self._norms) >= self.trainer.log_every_n_steps:
            self._report_skipped_steps()

    def _report_skipped_steps(self) -> None:
        """Counts and names the steps since the last report that were skipped.

        Raises TrainingError after `patience` of them in a row.
        """
        norms, self._norms = self._norms, []
        for step, norm, ids in norms:
            if norm.isfinite():
                self.skipped_in_a_row = 0
                continue
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            print(f"step {step} skipped, its gradient is not finite ({self.skipped} so far); utterances: "
                  f"{' '.join(ids)}", flush=True)
            if self.skipped_in_a_row >= self.patience:
                raise TrainingError(f"{self.patience} steps in a row had a gradient that is not finite, the last with "
                                    f"{', '.join(ids[:3])}; a lower --learning_rate, more --warmup_steps or "
                                    "--precision 32-true may help")

    def _normalize_gradients(self) -> None:
        """Makes the gradient that of (loss of all batches of the step) / (characters in all of them).

        DDP averages gradients over processes, and Lightning over accumulated batches. Each batch's sum was
        divided by the first one's characters (a mean over processes); with the others' it becomes the quotient
        of the global batch, however that is split over batches and processes.
        """
        window, self._window = self._window, []
        if len(window) == self.trainer.accumulate_grad_batches == 1:
            return
        factor = self.trainer.accumulate_grad_batches * window[0] / torch.stack(window).sum()
        torch._foreach_mul_([p.grad for p in self.parameters() if p.grad is not None], factor)

    def _clip(self, most: float) -> Tensor:
        """The norm of all gradients, which FSDP alone knows where each process holds a share of them."""
        sharded = self.trainer.strategy.model
        if hasattr(sharded, "clip_grad_norm_"):
            return sharded.clip_grad_norm_(most)
        return torch.nn.utils.clip_grad_norm_(self.parameters(), most)

    def _scaler(self):
        """Float16's gradient scaler; None under other precisions."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def configure_optimizers(self) -> dict:
        """AdamW; the schedule is a function of the step.

        A run that goes on with other batches has had another number of steps than these would have taken so
        far; the schedule goes on at the same share of the run.
        """
        decayed = [p for p in self.parameters() if p.requires_grad and p.dim() > 1]
        others = [p for p in self.parameters() if p.requires_grad and p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98),
                                      fused=self._scaler() is None)
        per_epoch = self._steps_per_epoch()
        if self._resumed:
            had, before = self._resumed["step"], self._resumed["before"]
            same = per_epoch == self._resumed["steps_per_epoch"]
            self.steps_before = before if same else (had + before) * per_epoch / self._resumed["steps_per_epoch"] - had
        total = per_epoch * self.trainer.max_epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step + self.steps_before, warmup=self.warmup_steps, total=total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps_per_epoch(self) -> int:
        """Optimiser steps of a whole epoch."""
        total = int(self.trainer.estimated_stepping_batches)  # also makes the loaders
        whole = self.trainer.datamodule.batches_per_epoch
        if whole is None:
            return total // self.trainer.max_epochs
        return math.ceil(whole / self.trainer.accumulate_grad_batches)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Adds what rebuilds the network without any other file, and the step's place in the schedule."""
        checkpoint["recognizer"] = dict(self.network.config)
        checkpoint["schedule"] = {"step": self.global_step, "before": self.steps_before,
                                  "steps_per_epoch": self._steps_per_epoch()}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Keeps the place in the schedule for `configure_optimizers`."""
        self._resumed = checkpoint.get("schedule", {})

    # -- evaluation --------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Nothing carries over from one evaluation to the next."""
        names = self.split_names()
        self._totals = [_SplitTotals() for _ in names]

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
        """Logs each split, and all dev splits pooled as `val/wer`, which chooses checkpoints."""
        self._log_results(pooled="val")

    def on_test_epoch_end(self) -> None:
        """Logs each test split."""
        self._log_results(pooled=None)

    def split_names(self) -> list[str]:
        """The splits that are being evaluated, in the order of their loaders."""
        data = self.trainer.datamodule
        return data.test_sets if self.trainer.testing else data.val_sets

    def _log_results(self, pooled: str | None) -> None:
        names = self.network.losses
        sums = [self.trainer.strategy.reduce(totals.tensor(names, self.device), reduce_op="sum").cpu()
                for totals in self._totals]
        rows = dict(zip(self.split_names(), sums, strict=True))
        if pooled:
            rows[pooled] = torch.stack(sums).sum(dim=0)
        self.results = {}
        for split, row in rows.items():
            tokens, *counts = row[len(names) :].tolist()
            errors = ErrorCounts(*(round(count) for count in counts))
            if split != pooled:
                self.results[split] = errors
            metrics = {"wer": errors.wer, "cer": errors.cer}
            metrics |= {name: float(value) / max(tokens, 1.0) for name, value in zip(names, row, strict=False)}
            self.log_dict({f"{split}/{name}": value for name, value in metrics.items()},
                          rank_zero_only=False, sync_dist=False)
            if split == pooled:
                self.log("val_wer", errors.wer, prog_bar=True, logger=False)

    def _mean_over_processes(self, value: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value, reduce_op="mean")


class _SplitTotals:
    """Sums of one split on one process: losses, tokens and the fields of ErrorCounts."""

    def __init__(self):
        self.losses, self.tokens, self.errors = {}, 0, ErrorCounts()

    def add(self, losses: dict[str, Tensor], batch: Batch, errors: ErrorCounts) -> None:
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + float(value)
        self.tokens += int(batch.token_counts.sum())
        self.errors += errors

    def tensor(self, names, device) -> Tensor:
        """(len(names) + 6,) float64, exact for counts below 2 ** 53."""
        losses = [self.losses.get(name, 0.0) for name in names]
        return torch.tensor([*losses, self.tokens, *self.errors], dtype=torch.float64, device=device)


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float = 0.01) -> float:
    """Factor of the peak learning rate: linear from 1 / warmup to 1, then a half cosine to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

