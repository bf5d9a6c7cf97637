"""Averages of the weights: a moving one while training, and the mean of the last epochs at its end."""

from pathlib import Path

import torch
from lightning.pytorch.callbacks import WeightAveraging

from utils.checkpoint.averaging import write_averaged
from utils.errors import UsageError
from utils.training.checkpointing import LatestCheckpoints, publish_best


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, which validation, tests and checkpoints use.

    The decay rises with the steps n as (1 + n) / (10 + n) up to its value, so that the random initial weights are soon
    forgotten. A checkpoint holds the trained weights as well as their average, to resume from.
    """

    def __init__(self, decay: float):
        self.decay = decay
        super().__init__(multi_avg_fn=self._average)

    def _average(self, averages, weights, count) -> None:
        if not averages[0].is_floating_point():  # counters
            torch._foreach_copy_(averages, weights)
            return
        decay = min(self.decay, (1 + count.item()) / (10 + count.item()))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def on_load_checkpoint(self, trainer, module, checkpoint) -> None:
        """Restores the trained weights for training; a test uses the average."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, module, checkpoint)


def average_last(trainer, module, data) -> str | None:
    """Writes `averaged.ckpt`, the mean of the last epochs' weights; it becomes best.ckpt if its val WER is lower.

    Returns its path then, else None. Raises UsageError where no epoch was kept for it.
    """
    latest = next(callback for callback in trainer.callbacks if isinstance(callback, LatestCheckpoints))
    if not latest.paths:
        raise UsageError("--average_last: no epoch was kept for it: give the flag before the last epochs are trained")
    path = Path(latest.dirpath, "averaged.ckpt")
    if trainer.is_global_zero:
        write_averaged(latest.paths, path)
    trainer.strategy.barrier("averaged.ckpt")
    trainer.validate(module, datamodule=data, ckpt_path=str(path), weights_only=True, verbose=False)
    wer, best = float(trainer.callback_metrics["val/wer"]), trainer.checkpoint_callback.best_model_score
    best = float("inf") if best is None else float(best)
    if trainer.is_global_zero:
        print(f"mean of the last {len(latest.paths)} epochs: val WER {100 * wer:.2f} %, "
              f"{'now' if wer < best else 'not'} the best ({100 * best:.2f} %)", flush=True)
        if wer < best:
            publish_best(path)
    return str(path) if wer < best else None
