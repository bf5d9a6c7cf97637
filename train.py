#!/usr/bin/env python
"""Trains a recogniser.

    python train.py -g 4 --epochs 50                      LibriSpeech, downloaded where it is missing
    python train.py --config configs/digits.yaml          a recipe; flags after it win
    python train.py --checkpoint_path auto ...            the same command goes on where it stopped
"""

import argparse
import json
import os
import sys
from pathlib import Path

import yaml

from data.index import DataError
from data.librispeech import URL
from models import Recognizer
from utils.audio import AudioError
from utils.checkpoint import CheckpointError, newest_checkpoint, read_checkpoint
from utils.cli import (
    OneLineParser,
    UsageError,
    add_constructor_flags,
    config_arguments,
    count_or_share,
    fail,
    nonnegative_float,
    nonnegative_int,
    positive_float,
    positive_int,
    read_yaml,
    share,
    steps_or_minutes,
)
from utils.files import write_whole
from utils.runtime import git_revision, keep_large_blocks, quiet_packages

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "transformer-engine",
              "transformer-engine-float16", "32", "16", "bf16", "64")
TERMINATED = 143  # exit status of a run that SIGTERM ended
KEPT_CHECKPOINTS = 3  # best by dev WER; the last one is kept besides
PROJECT = "speech-recognition"


def build_parser(model: str) -> argparse.ArgumentParser:
    """Every flag of a run, those of the model's own constructor among them."""
    parser = OneLineParser(prog="train.py", description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", default=model, choices=sorted(Recognizer.registry), help="network")
    parser.add_argument("--config", help="YAML file of flags; the command line wins")
    _add_machine_flags(parser.add_argument_group("machine"))
    _add_data_flags(parser.add_argument_group("data"))
    _add_training_flags(parser.add_argument_group("training"))
    _add_run_flags(parser.add_argument_group("run"))
    add_constructor_flags(parser, Recognizer.registry[model])
    return parser


def _add_machine_flags(group) -> None:
    group.add_argument("-g", "--gpus", type=nonnegative_int, default=1, help="GPUs a node; 0 for the CPU")
    group.add_argument("--nodes", type=positive_int, default=1, help="machines")
    group.add_argument("--cpu_processes", type=positive_int, default=1, help="processes where there is no GPU")
    group.add_argument("-w", "--num_workers", type=nonnegative_int, default=min(4, os.cpu_count() or 1),
                       help="processes that read audio")
    group.add_argument("-db", "--dist_backend", help="Lightning strategy: ddp for several devices, else auto")
    group.add_argument("--precision", choices=PRECISIONS,
                       help="bf16-mixed where the GPU has it, else 16-mixed; 32-true on a CPU")


def _add_data_flags(group) -> None:
    group.add_argument("--data_root", default="data", help="folder of the corpora")
    group.add_argument("--train_sets", nargs="+", default=["train-clean-100"], help="subsets, folders or manifests")
    group.add_argument("--val_sets", nargs="+", default=["dev-clean", "dev-other"], help="choose checkpoints")
    group.add_argument("--test_sets", nargs="*", default=["test-clean", "test-other"], help="reported at the end")
    group.add_argument("--batch_size", type=positive_int, default=32, help="utterances a batch and process")
    group.add_argument("--batch_seconds", type=positive_float,
                       help="seconds of padded audio a batch and process; wins over --batch_size")
    group.add_argument("--speed_perturb", type=positive_float, nargs="*", default=[],
                       help="speeds to draw from in training, e.g. 0.9 1.0 1.1")
    group.add_argument("--skip_bad_audio", action=argparse.BooleanOptionalAction, default=False,
                       help="count files that cannot be read in place of stopping")
    group.add_argument("--cache_dir", default=".cache/index", help="durations of audio files")
    group.add_argument("--librispeech_url", default=URL, help="where LibriSpeech's archives are")


def _add_training_flags(group) -> None:
    group.add_argument("--epochs", type=positive_int, default=50, help="passes over the training sets")
    group.add_argument("-lr", "--learning_rate", type=positive_float, default=5e-4, help="peak of the schedule")
    group.add_argument("--warmup_steps", type=nonnegative_int, default=1000, help="linear warm-up, then a cosine")
    group.add_argument("--weight_decay", type=nonnegative_float, default=1e-2, help="of AdamW")
    group.add_argument("-gc", "--grad_clip", type=nonnegative_float, default=5.0, help="gradient norm; 0 for none")
    group.add_argument("--accumulate", type=positive_int, default=1, help="batches an optimiser step")
    group.add_argument("--ema_decay", type=share, default=0.0,
                       help="moving average of the weights, for evaluation and checkpoints; 0 for none")
    group.add_argument("--seed", type=nonnegative_int, default=0, help="of weights, order and augmentation")
    group.add_argument("--limit_train_batches", type=count_or_share, default=1.0, help="count, or share with a point")
    group.add_argument("--overfit_batches", type=count_or_share, default=0, help="train and validate on so few")
    group.add_argument("--early_stop_patience", type=nonnegative_int, default=0,
                       help="epochs without a better dev WER; 0 for never")


def _add_run_flags(group) -> None:
    group.add_argument("--output_dir", help="checkpoints and results; runs/CONFIG or runs/MODEL by default")
    group.add_argument("--checkpoint_path", help="checkpoint to resume, or auto for the newest of this run")
    group.add_argument("--checkpoint_every", type=steps_or_minutes, metavar="N|Nm",
                       help="optimiser steps, or minutes with an m, between checkpoints within an epoch")
    group.add_argument("--logger", choices=("comet", "tensorboard", "csv", "none"), default="comet",
                       help="experiment logger")
    group.add_argument("--log_every", type=positive_int, default=20, help="steps between logged training metrics")
    group.add_argument("--fast_dev_run", action=argparse.BooleanOptionalAction, default=False,
                       help="one batch of everything, nothing kept")
    group.add_argument("--print_model", action=argparse.BooleanOptionalAction, default=False,
                       help="show the network and its parameter count, then stop")
    group.add_argument("--progress_bar", action=argparse.BooleanOptionalAction, default=sys.stderr.isatty(),
                       help="loss, WER and throughput as they come")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags and the config file, the command line winning. Raises UsageError."""
    argv = sys.argv[1:] if argv is None else argv
    first = OneLineParser(add_help=False)
    first.add_argument("-m", "--model")
    first.add_argument("--config")
    known, _ = first.parse_known_args(argv)
    from_config = read_yaml(known.config).get("model") if known.config else None
    model = known.model or from_config or "deepspeech2"
    if model not in Recognizer.registry:
        where = "--model" if known.model else f"{known.config}: model"
        raise UsageError(f"{where}: {model!r} is none of {', '.join(sorted(Recognizer.registry))}")
    parser = build_parser(model)
    configured = config_arguments(known.config, parser) if known.config else []
    args = parser.parse_args(configured + argv)
    if args.output_dir is None:
        args.output_dir = str(Path("runs", Path(args.config).stem if args.config else args.model))
    return args


def build_network(args: argparse.Namespace) -> Recognizer:
    """The network that the flags describe. Raises UsageError where they do not fit together."""
    from models.recognizer import default_options

    options = {name: getattr(args, name) for name in default_options(Recognizer.registry[args.model])}
    try:
        return Recognizer.build(args.model, **options)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"the {args.model} network cannot be built: {error}") from None


def describe(network: Recognizer) -> str:
    """The network's layers and its exact number of trainable parameters."""
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return f"{network}\n{count:,} parameters"


def build_data(args: argparse.Namespace, network: Recognizer):
    """The data module of the flags."""
    from data.datamodule import LibriSpeechDataModule

    return LibriSpeechDataModule(
        data_root=args.data_root, train_sets=args.train_sets, val_sets=args.val_sets, test_sets=args.test_sets,
        tokenizer=network.tokenizer, batch_size=args.batch_size, batch_seconds=args.batch_seconds,
        num_workers=args.num_workers, speeds=args.speed_perturb, seed=args.seed,
        output_frames=network.output_frames, skip_bad_audio=args.skip_bad_audio,
        overfit=bool(args.overfit_batches), cache_dir=args.cache_dir, url=args.librispeech_url)


def resume_path(args: argparse.Namespace, network: Recognizer) -> str | None:
    """The checkpoint to go on from, whose network must be the one of the flags.

    Raises CheckpointError or UsageError that names the flags in which they differ.
    """
    if not args.checkpoint_path:
        return None
    folder, auto = Path(args.output_dir, "checkpoints"), args.checkpoint_path == "auto"
    if auto and not any(folder.glob("*.ckpt")):
        print(f"{folder}: no checkpoint yet, so this run begins anew")
        return None
    path = newest_checkpoint(folder) if auto else Path(args.checkpoint_path)
    saved = read_checkpoint(path)["recognizer"]
    different = [f"--{name} was {saved.get(name)!r}, is {network.config.get(name)!r}"
                 for name in sorted(saved.keys() | network.config.keys())
                 if saved.get(name) != network.config.get(name)]
    if different:
        raise UsageError(f"{path} holds another network: {'; '.join(different)}")
    return str(path)


def build_trainer(args: argparse.Namespace, logger):
    """Lightning's Trainer on the devices that are there."""
    import lightning
    import torch

    from utils.callbacks import WholeFiles

    gpus = args.gpus if torch.cuda.is_available() else 0
    if args.gpus and not gpus:
        print("no GPU here: training on the CPU")
    if gpus > torch.cuda.device_count():
        raise UsageError(f"--gpus {gpus}: this machine has {torch.cuda.device_count()}")
    devices = gpus or args.cpu_processes
    strategy = args.dist_backend or ("ddp" if devices * args.nodes > 1 else "auto")
    if args.precision is None:
        args.precision = ("bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed") if gpus else "32-true"
    try:
        return lightning.Trainer(
            accelerator="gpu" if gpus else "cpu", devices=devices, num_nodes=args.nodes, strategy=strategy,
            precision=args.precision, logger=logger or False, callbacks=build_callbacks(args),
            plugins=[WholeFiles()],
            max_epochs=args.epochs, gradient_clip_val=args.grad_clip or None,
            accumulate_grad_batches=args.accumulate, limit_train_batches=args.limit_train_batches,
            overfit_batches=args.overfit_batches, fast_dev_run=args.fast_dev_run, use_distributed_sampler=False,
            num_sanity_val_steps=0, log_every_n_steps=args.log_every, enable_progress_bar=args.progress_bar,
            enable_model_summary=False, default_root_dir=args.output_dir)
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise UsageError(f"Lightning refuses these flags: {error}") from None


def build_callbacks(args: argparse.Namespace) -> list:
    """Checkpoints, early stop, progress and what is shown of a run."""
    from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, TQDMProgressBar

    from utils.callbacks import (
        Checkpoints,
        History,
        PeriodicCheckpoint,
        Samples,
        SaveOnTermination,
        SkippedFiles,
        Throughput,
        WeightAverage,
    )

    callbacks = [Throughput(), SkippedFiles()]
    if args.progress_bar:
        callbacks.append(TQDMProgressBar())  # one line, where the default one wraps its metrics
    if args.fast_dev_run:
        return callbacks
    output = Path(args.output_dir)
    callbacks += [Samples(output / "samples"), History(output / "history.jsonl")]
    callbacks.append(Checkpoints(output / "checkpoints", keep=KEPT_CHECKPOINTS))
    callbacks.append(PeriodicCheckpoint(output / "checkpoints", "last", epochs=1))
    if args.checkpoint_every:
        kind = "minutes" if args.checkpoint_every.endswith("m") else "steps"
        every = int(args.checkpoint_every.removesuffix("m"))
        callbacks.append(PeriodicCheckpoint(output / "checkpoints", "periodic", **{kind: every}))
    if args.logger != "none":
        callbacks.append(LearningRateMonitor(logging_interval="step"))
    if args.ema_decay:
        callbacks.append(WeightAverage(args.ema_decay))  # after Samples, which then shows the averaged network
    callbacks.append(SaveOnTermination(output / "checkpoints" / "periodic.ckpt"))
    if args.early_stop_patience:
        callbacks.append(EarlyStopping(monitor="dev/wer", mode="min", patience=args.early_stop_patience))
    return callbacks


def write_config(args: argparse.Namespace, logger) -> None:
    """The resolved flags beside the checkpoints and in the logger, with the revision of the code."""
    values = {name: value for name, value in vars(args).items() if value is not None and name != "config"}
    if logger is not None:
        logger.log_hyperparams({**values, "git_revision": git_revision()})
    if not args.fast_dev_run:
        content = f"# code {git_revision()}\n" + yaml.safe_dump(values, sort_keys=True)
        write_whole(Path(args.output_dir, "config.yaml"), content)


def report(args: argparse.Namespace, results: dict, checkpoint: str) -> None:
    """Prints the table of the test sets and writes `results.json`."""
    rows = {split: {"wer": counts.wer, "cer": counts.cer, "errors": counts.word_errors, "words": counts.words,
                    "utterances": counts.utterances, "checkpoint": checkpoint}
            for split, counts in results.items()}
    print(f"\n{'test set':24}{'WER %':>8}{'CER %':>8}{'errors':>9}{'words':>9}{'utterances':>12}")
    for split, row in rows.items():
        print(f"{split:24}{100 * row['wer']:8.2f}{100 * row['cer']:8.2f}{row['errors']:9,}{row['words']:9,}"
              f"{row['utterances']:12,}")
    print(f"checkpoint: {checkpoint}", flush=True)
    write_whole(Path(args.output_dir, "results.json"), json.dumps(rows, indent=2) + "\n")


def refuse_to_mix(args: argparse.Namespace) -> None:
    """Two runs in one folder would mix their checkpoints. Raises UsageError."""
    launched = "LOCAL_RANK" in os.environ  # a process of this very run, started by its first one
    if not launched and not args.checkpoint_path and any(Path(args.output_dir, "checkpoints").glob("*.ckpt")):
        raise UsageError(f"{args.output_dir} holds the checkpoints of an earlier run: go on with it by "
                         "--checkpoint_path auto, or choose another --output_dir, or delete it")


def train(args: argparse.Namespace):
    """A whole run: fit, then test the checkpoint with the best dev WER.

    Returns the trainer and the test sets' ErrorCounts by name (empty where nothing was tested).
    """
    import lightning
    import torch
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from models.lightning_module import SpeechModule, TrainingError
    from utils.loggers import build_logger, close_logger

    quiet_packages()  # after the import, which sets its own levels
    lightning.seed_everything(args.seed, workers=True, verbose=False)
    network = build_network(args)
    refuse_to_mix(args)
    checkpoint = resume_path(args, network)
    data = build_data(args, network)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    logger = None if args.fast_dev_run else build_logger(
        args.logger, output_dir=Path(args.output_dir), project=PROJECT, name=Path(args.output_dir).name)
    try:
        trainer = build_trainer(args, logger)
        if trainer.is_global_zero:
            write_config(args, logger)
        module = SpeechModule(network, learning_rate=args.learning_rate, warmup_steps=args.warmup_steps,
                              weight_decay=args.weight_decay, seed=args.seed)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return trainer, test(args, trainer, module, data)
    except SIGTERMException:
        raise SystemExit(TERMINATED) from None
    except torch.OutOfMemoryError:
        raise UsageError(out_of_memory(module)) from None
    except TrainingError as error:
        raise UsageError(str(error)) from None
    finally:
        close_logger(logger)


def out_of_memory(module) -> str:
    """What to change, and how large the batch was."""
    audio, padded = module.batch_seconds
    return (f"the device's memory is full at a batch of {len(module.batch_ids)} utterances, {audio:.0f} s of audio and "
            f"{padded:.0f} s with padding; --batch_seconds {max(padded // 2, 1):.0f} with --accumulate 2 is about the "
            "same training in half the memory")


def test(args: argparse.Namespace, trainer, module, data) -> dict:
    """The ErrorCounts of each test set with the best checkpoint; nothing for a run that was cut short."""
    if not args.test_sets or args.fast_dev_run or trainer.interrupted:
        return {}
    best = trainer.checkpoint_callback.best_model_path
    trainer.test(module, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
    if trainer.is_global_zero:
        report(args, module.results, best)
    return module.results


def main(argv: list[str] | None = None) -> None:
    """Leaves with status 2 and one line where a flag, a file or a checkpoint is wrong."""
    keep_large_blocks()
    from dotenv import load_dotenv

    load_dotenv(Path(__file__).parent / ".env")
    os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")
    try:
        args = parse_arguments(argv)
        if args.print_model:
            print(describe(build_network(args)))
            return
        train(args)
    except (UsageError, DataError, AudioError, CheckpointError) as error:
        fail("train.py", error)
    except OSError as error:  # a full disk, a folder that cannot be written
        fail("train.py", f"{error.filename or 'a file of the run'}: {error.strerror or error}")


if __name__ == "__main__":
    main()
