"""Lightning's Trainer and the callbacks of a run."""

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from utils.errors import UsageError
from utils.process import is_first_process, keep_float32
from utils.training.callbacks import EarlyStop, History, ProgressLines, SkippedFiles, Throughput
from utils.training.checkpointing import AtomicCheckpointIO, BestCheckpoints, LatestCheckpoints, PeriodicCheckpoint
from utils.training.folder import RunConfig
from utils.training.launch import Devices
from utils.training.moving_average import MovingAverage
from utils.training.samples import Samples
from utils.training.signals import StopOnSignal

SHARDED = ("fsdp", "deepspeed", "model_parallel")  # strategies that share the weights out among the processes
KEPT_CHECKPOINTS = 3  # best by val WER


def build_trainer(run: argparse.Namespace, devices: Devices, logger: Logger | None) -> lightning.Trainer:
    """Returns Lightning's Trainer for the flags of a run, and sets those that were left open. Raises UsageError."""
    keep_float32()  # for --precision 32-true, as evaluation and inference have it
    run.precision = run.precision or choose_precision(devices)
    warn_of_slow_precision(run.precision, devices)
    refuse_log_scan(run, devices)
    run.dist_backend = choose_strategy(run.dist_backend, devices)
    try:
        return lightning.Trainer(
            accelerator=devices.accelerator, devices=devices.per_node, num_nodes=devices.nodes,
            strategy=run.dist_backend, precision=run.precision, logger=logger or False, plugins=build_plugins(),
            callbacks=build_callbacks(run), max_epochs=run.epochs, gradient_clip_val=run.grad_clip or None,
            accumulate_grad_batches=run.accumulate, limit_train_batches=run.limit_train_batches,
            overfit_batches=run.overfit_batches, fast_dev_run=run.fast_dev_run, use_distributed_sampler=False,
            num_sanity_val_steps=0, log_every_n_steps=run.log_every, enable_progress_bar=run.progress_bar,
            deterministic=run.deterministic, enable_model_summary=False, default_root_dir=run.output_dir)
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise UsageError(f"Lightning refuses these flags: {error}") from None


def choose_precision(devices: Devices) -> str:
    """Returns the fastest precision that trains well: bfloat16 where a GPU has it, else float16; float32 on a CPU."""
    if devices.accelerator == "cpu":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def warn_of_slow_precision(precision: str, devices: Devices) -> None:
    """Says once where a processor lacks the instructions for bfloat16 and would compute each product by detours."""
    if not precision.startswith("bf16") or devices.accelerator != "cpu":
        return
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not fast and is_first_process():
        print(f"--precision {precision}: this processor has no instructions for bfloat16: LSTMs cannot be trained "
              "in it, and other layers take many times as long as with 32-true", flush=True)


def refuse_log_scan(run: argparse.Namespace, devices: Devices) -> None:
    """Raises UsageError for minGRU's scan in log space, whose cumulative sum has no deterministic form on a GPU."""
    scans = getattr(run, "rnn_type", None) == "mingru" and run.mingru_scan == "log"
    if scans and run.deterministic and devices.accelerator != "cpu":
        raise UsageError("--deterministic: --mingru_scan log has no deterministic form on a GPU; take linear")


def choose_strategy(name: str | None, devices: Devices) -> str:
    """Returns the Lightning strategy `name`, or the usual one. Raises UsageError for one that cannot work."""
    name = name or ("ddp" if devices.processes > 1 else "auto")
    if name.endswith(("spawn", "fork", "notebook")):
        raise UsageError(f"--strategy {name}: the processes of a run are commands of their own; take ddp")
    if name.startswith(SHARDED):
        raise UsageError(f"--strategy {name} leaves no process with all the weights, which checkpoints, samples and "
                         "--ema_decay need; take ddp")
    return name


def build_plugins() -> list:
    """Returns what writes checkpoints; and under SLURM, what leaves its signals and the requeueing to this run.

    Lightning would save in the middle of whatever runs; `docs/slurm.sh` requeues after a checkpoint between steps.
    """
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [AtomicCheckpointIO(), SLURMEnvironment(auto_requeue=False)]
    return [AtomicCheckpointIO()]


def build_callbacks(run: argparse.Namespace) -> list[Callback]:
    """Returns what watches, records and ends a run, in the order in which the callbacks see each event."""
    throughput = Throughput()
    # Lightning's default bar wraps its metrics; a bar that reads them at every step makes the host wait for the device.
    progress = TQDMProgressBar(refresh_rate=run.log_every) if run.progress_bar else ProgressLines(throughput)
    callbacks = [throughput, SkippedFiles(), progress]
    if run.fast_dev_run:
        return callbacks
    output = Path(run.output_dir)
    history = History(output / "history.jsonl")
    callbacks += [RunConfig(run), Samples(output / "samples"), history]
    if run.logger != "none":
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    if run.ema_decay:
        callbacks.append(MovingAverage(run.ema_decay))
    callbacks.append(StopOnSignal(output / "checkpoints" / "periodic.ckpt"))
    if run.early_stop_patience:
        callbacks.append(EarlyStop(history, run.early_stop_patience))
    return callbacks + build_checkpoints(output / "checkpoints", average_last=run.average_last,
                                         every=run.checkpoint_every)


def build_checkpoints(folder: Path, *, average_last: int, every: str | None) -> list[Callback]:
    """Returns what writes the checkpoints; `every` is a number of steps such as 500, or of minutes such as 10m."""
    checkpoints = [BestCheckpoints(folder, KEPT_CHECKPOINTS)]
    if average_last:
        checkpoints.append(LatestCheckpoints(folder, average_last))
    checkpoints.append(PeriodicCheckpoint(folder, "last", epochs=1))  # after those whose scores it holds
    if every:
        kind = "minutes" if every.endswith("m") else "steps"
        checkpoints.append(PeriodicCheckpoint(folder, "periodic", **{kind: int(every.removesuffix("m"))}))
    return checkpoints
