"""The mean of the weights of the last epochs, taken when training has ended."""

from pathlib import Path

from utils.checkpoint.averaging import write_averaged
from utils.errors import UsageError
from utils.training.checkpointing import LatestCheckpoints, publish_best


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
