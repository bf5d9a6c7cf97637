"""Flags to Lightning's Trainer: devices, strategy, precision, callbacks."""

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from utils.errors import UsageError
from utils.training.callbacks import History, Samples, SkippedFiles, Throughput
from utils.training.checkpointing import (
    Checkpoints,
    LatestCheckpoints,
    PeriodicCheckpoint,
    StopOnSignal,
    WeightAverage,
    WholeFiles,
)

SHARDED = ("fsdp", "deepspeed", "model_parallel")  # strategies that share the weights out among the processes
KEPT_CHECKPOINTS = 3  # best by val WER; the last one is kept besides


def build_trainer(args: argparse.Namespace, logger):
    """Lightning's Trainer on the devices that are there."""
    gpus = args.gpus if torch.cuda.is_available() else 0
    if args.gpus and not gpus:
        print("no GPU here: training on the CPU")
    if gpus > torch.cuda.device_count():
        raise UsageError(f"--gpus {gpus}: this machine has {torch.cuda.device_count()}")
    devices = gpus or args.cpu_processes
    strategy = args.dist_backend = args.dist_backend or ("ddp" if devices * args.nodes > 1 else "auto")
    if strategy.endswith(("spawn", "fork", "notebook")):
        raise UsageError(f"--strategy {strategy}: the processes of a run are commands of their own; take ddp")
    if strategy.startswith(SHARDED) and args.ema_decay:
        raise UsageError(f"--strategy {strategy} leaves no process with all the weights that --ema_decay averages")
    if args.precision is None:
        args.precision = ("bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed") if gpus else "32-true"
    try:
        return lightning.Trainer(
            accelerator="gpu" if gpus else "cpu", devices=devices, num_nodes=args.nodes, strategy=strategy,
            precision=args.precision, logger=logger or False, callbacks=build_callbacks(args),
            plugins=build_plugins(),
            max_epochs=args.epochs, gradient_clip_val=args.grad_clip or None,
            accumulate_grad_batches=args.accumulate, limit_train_batches=args.limit_train_batches,
            overfit_batches=args.overfit_batches, fast_dev_run=args.fast_dev_run, use_distributed_sampler=False,
            num_sanity_val_steps=0, log_every_n_steps=args.log_every, enable_progress_bar=args.progress_bar,
            deterministic=args.deterministic, enable_model_summary=False, default_root_dir=args.output_dir)
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise UsageError(f"Lightning refuses these flags: {error}") from None


def build_plugins() -> list:
    """Whole checkpoints; and under SLURM, that Lightning leaves its signals and the requeueing to this run.

    Lightning would save in the middle of whatever runs; `docs/slurm.sh` requeues after a checkpoint between steps.
    """
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [WholeFiles(), SLURMEnvironment(auto_requeue=False)]
    return [WholeFiles()]


def build_callbacks(args: argparse.Namespace) -> list:
    """Checkpoints, early stop, progress and what is shown of a run."""
    callbacks = [Throughput(), SkippedFiles()]
    if args.progress_bar:
        callbacks.append(TQDMProgressBar())  # one line, where the default one wraps its metrics
    if args.fast_dev_run:
        return callbacks
    output = Path(args.output_dir)
    folder = output / "checkpoints"
    callbacks += [Samples(output / "samples"), History(output / "history.jsonl")]
    callbacks.append(Checkpoints(folder, keep=KEPT_CHECKPOINTS))
    if args.average_last:
        callbacks.append(LatestCheckpoints(folder, args.average_last))
    callbacks.append(PeriodicCheckpoint(folder, "last", epochs=1))  # after those whose bookkeeping it holds
    if args.checkpoint_every:
        kind = "minutes" if args.checkpoint_every.endswith("m") else "steps"
        every = int(args.checkpoint_every.removesuffix("m"))
        callbacks.append(PeriodicCheckpoint(folder, "periodic", **{kind: every}))
    if args.logger != "none":
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    if args.ema_decay:
        callbacks.append(WeightAverage(args.ema_decay))  # after Samples, which then shows the averaged network
    callbacks.append(StopOnSignal(folder / "periodic.ckpt"))
    if args.early_stop_patience:
        callbacks.append(EarlyStopping(monitor="val/wer", mode="min", patience=args.early_stop_patience))
    return callbacks
