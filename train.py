#!/usr/bin/env python
"""Trains a recogniser.

    python train.py -g 4 --epochs 50                            LibriSpeech, downloaded where it is missing
    python train.py --config configs/deepspeech2_digits.yaml    a recipe; flags after it win
    python train.py --checkpoint_path auto ...                  the same command goes on where it stopped
"""

import argparse
import json
import multiprocessing
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import yaml

from data import readers
from data.librispeech import URL
from data.options import TrainingDataOptions
from models import Recognizer
from models.components.checkpointing import EncoderLayer
from models.optim import OptimizerConfig
from utils.checkpoint.averaging import write_averaged
from utils.checkpoint.reading import newest_checkpoint, read_resumable
from utils.cli.parser import (
    OneLineParser,
    add_constructor_flags,
    config_arguments,
    pick_arguments,
    read_yaml,
)
from utils.errors import UsageError, is_out_of_memory, one_line_errors
from utils.files.atomic import atomic_write
from utils.files.locks import exclusive_folder
from utils.process import git_revision, is_first_process, keep_few_kernels, keep_large_blocks, quiet_packages
from utils.tokenizer import learn_vocabulary
from utils.training.flags import VOCAB_SIZE, add_run_flags

PROJECT = "speech-recognition"


def build_parser(model: str) -> argparse.ArgumentParser:
    """Every flag of a run, those of the model's own constructor among them."""
    parser = OneLineParser(prog="train.py", description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", default=model, choices=sorted(Recognizer.registry), help="network")
    parser.add_argument("--config", help="YAML file of flags; the command line wins")
    add_run_flags(parser, librispeech_url=URL)
    add_constructor_flags(parser, OptimizerConfig, title="optimiser and schedule", aliases={"learning_rate": "-lr"})
    add_constructor_flags(parser, Recognizer.registry[model], leave_out=["vocabulary"])
    parser.set_defaults(vocabulary=None)  # which the data say
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags and the config file, the command line winning. Raises UsageError."""
    argv = sys.argv[1:] if argv is None else argv
    first = OneLineParser(add_help=False)
    first.add_argument("-m", "--model")
    first.add_argument("--config")
    known, _ = first.parse_known_args(argv)
    from_config = read_yaml(known.config).get("model") if known.config else None
    model = str(known.model or from_config or "deepspeech2")
    if model not in Recognizer.registry:
        where = "--model" if known.model else f"{known.config}: model"
        raise UsageError(f"{where}: {model!r} is none of {', '.join(sorted(Recognizer.registry))}")
    parser = build_parser(model)
    configured = config_arguments(known.config, parser) if known.config else []
    args = parser.parse_args(configured + argv)
    if args.vocab_size and args.tokenizer != "bpe":
        raise UsageError(f"--vocab_size {args.vocab_size}: goes with --tokenizer bpe")
    if args.output_dir is None:
        args.output_dir = str(Path("runs", Path(args.config).stem if args.config else args.model))
    return args


def build_network(args: argparse.Namespace, vocabulary: list[str] | None = None) -> Recognizer:
    """The network that the flags describe. Raises UsageError where they do not fit together."""
    options = {**pick_arguments(Recognizer.registry[args.model], args), "vocabulary": vocabulary}
    try:
        network = Recognizer.build(args.model, **options)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"the {args.model} network cannot be built: {error}") from None
    layers = [module for module in network.modules() if isinstance(module, EncoderLayer)]
    try:
        for layer in layers if args.gradient_checkpointing else []:
            layer.recompute_in_backward()
    except ValueError as error:
        raise UsageError(str(error)) from None
    for layer in layers if args.compile else []:
        layer.compile(dynamic=True)  # for any length, without compiling again for each
    return network


def describe(network: Recognizer) -> str:
    """The network's layers and its exact number of trainable parameters."""
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return f"{network}\n{count:,} parameters"


def find_vocabulary(args: argparse.Namespace, saved: dict | None = None) -> list[str] | None:
    """Returns the pieces of --tokenizer bpe: a checkpoint's, or learnt from the training transcripts.

    `saved` are the options of the checkpoint's network. Every process learns the same. Raises UsageError or DataError.
    """
    if args.tokenizer != "bpe":
        return None
    if saved:
        return saved.get("vocabulary")
    options, size = TrainingDataOptions(**pick_arguments(TrainingDataOptions, args)), args.vocab_size or VOCAB_SIZE
    root = Path(options.data_root).expanduser()
    readers.download_missing(root, options.train_sets, url=options.librispeech_url)
    texts = readers.read_transcripts(root, options.train_sets)
    try:
        vocabulary = learn_vocabulary(texts, alphabet=args.alphabet, vocab_size=size)
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from None
    if is_first_process():
        print(f"{size} pieces learnt from {len(texts):,} transcripts: {' '.join(vocabulary[:8])} ...", flush=True)
    return vocabulary


def build_data(args: argparse.Namespace, network: Recognizer):
    """The data module of the flags."""
    from data.datamodule import LibriSpeechDataModule

    options = TrainingDataOptions(**pick_arguments(TrainingDataOptions, args))
    return LibriSpeechDataModule(options, network.tokenizer, output_frames=network.output_frames,
                                 overfit=bool(args.overfit_batches))


def resume_from(args: argparse.Namespace) -> tuple[str | None, dict | None]:
    """Returns the checkpoint to go on from and the options of its network. Raises CheckpointError."""
    if not args.checkpoint_path:
        return None, None
    folder, auto = Path(args.output_dir, "checkpoints"), args.checkpoint_path == "auto"
    if auto and not any(folder.glob("*.ckpt")):
        print(f"{folder}: no checkpoint yet, so this run begins anew")
        return None, None
    path = newest_checkpoint(folder) if auto else Path(args.checkpoint_path)
    return str(path), read_resumable(path)["recognizer"]


def check_same_network(args: argparse.Namespace, path: str, saved: dict, network: Recognizer) -> None:
    """Raises UsageError that names the flags in which the network differs from that of the checkpoint `path`."""
    flags, before = dict(network.config), dict(saved)
    if args.vocab_size and saved.get("tokenizer") == "bpe":
        flags["vocab_size"], before["vocab_size"] = args.vocab_size, network.tokenizer.ctc_size - 1
    different = [f"--{name} was {before.get(name)!r}, is {flags.get(name)!r}"
                 for name in sorted((before.keys() | flags.keys()) - {"vocabulary"})
                 if before.get(name) != flags.get(name)]
    if different:
        raise UsageError(f"{path} holds another network: {'; '.join(different)}")


def write_config(args: argparse.Namespace, logger) -> None:
    """The resolved flags beside the checkpoints and in the logger, with the revision of the code."""
    values = {name: value for name, value in vars(args).items() if value is not None and name != "config"}
    if logger is not None:
        logger.log_hyperparams({**values, "git_revision": git_revision()})
    if not args.fast_dev_run:
        content = f"# code {git_revision()}\n" + yaml.safe_dump(values, sort_keys=True)
        atomic_write(Path(args.output_dir, "config.yaml"), content)


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
    atomic_write(Path(args.output_dir, "results.json"), json.dumps(rows, indent=2) + "\n")


@contextmanager
def output_folder(args: argparse.Namespace):
    """Holds the run's folder, in which two runs would mix their checkpoints. Raises UsageError."""
    if args.fast_dev_run or not is_first_process():
        yield
        return
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if not args.checkpoint_path and any(folder.glob("checkpoints/*.ckpt")):
        raise UsageError(f"{folder} holds the checkpoints of an earlier run: go on with it by "
                         "--checkpoint_path auto, or choose another --output_dir, or delete it")
    try:
        with exclusive_folder(folder) as locked:
            if not locked:
                print(f"{folder}: its file system has no locks, so a second run in it would not be noticed")
            yield
    except BlockingIOError:
        raise UsageError(f"{folder} is in use by another run: choose another --output_dir") from None


def train(args: argparse.Namespace):
    """A whole run: fit, then test the checkpoint with the best val WER.

    Returns the trainer and the test sets' ErrorCounts by name (empty where nothing was tested).
    """
    import lightning

    from models.lightning_module import SpeechModule
    from utils.training.checkpointing import Interrupted
    from utils.training.loggers import build_logger, close_logger
    from utils.training.trainer import build_trainer

    quiet_packages()  # after the import, which sets its own levels
    lightning.seed_everything(args.seed, workers=True, verbose=False)
    with output_folder(args):
        checkpoint, saved = resume_from(args)
        network = build_network(args, find_vocabulary(args, saved))
        if saved:
            check_same_network(args, checkpoint, saved, network)
        data = build_data(args, network)
        data.prepare_data()  # while no process waits for another one, which it would do for half an hour at most
        module = SpeechModule(network, OptimizerConfig(**pick_arguments(OptimizerConfig, args)), seed=args.seed)
        logger = None if args.fast_dev_run else build_logger(
            args.logger, output_dir=Path(args.output_dir), project=PROJECT, name=Path(args.output_dir).name,
            resumed=checkpoint is not None)
        try:
            trainer = build_trainer(args, logger)
            if trainer.is_global_zero:
                write_config(args, logger)
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            return trainer, test(args, trainer, module, data)
        except Interrupted as interruption:
            raise SystemExit(interruption.status if is_first_process() else 0) from None
        except RuntimeError as error:
            raise UsageError(explain(error, module)) from error
        finally:
            close_logger(logger)
            end_workers()


def explain(error: RuntimeError, module) -> str:
    """What to do about an error of the machine or of the run. Raises any other error as it is."""
    import torch

    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        audio, padded = module.batch_seconds
        return (f"the device's memory is full at a batch of {len(module.batch_ids)} utterances, {audio:.0f} s of audio "
                f"and {padded:.0f} s with padding; --batch_seconds {max(padded // 2, 1):.0f} with --accumulate 2 is "
                "about the same training in half the memory, and --gradient_checkpointing needs less as well")
    if "DataLoader worker" in text:
        return (f"a process that reads audio has died ({text[:150]}); where memory ran out, --num_workers 1 takes "
                "less of it; --checkpoint_path auto goes on")
    if isinstance(error, torch.distributed.DistError) or "gloo" in text:
        return (f"the connection to another process of the run broke ({text[-150:]}): it has died, and its own message "
                "says why; --checkpoint_path auto goes on")
    raise error


def end_workers() -> None:
    """Kills data workers that are left, such as one that waits for a disk that is gone."""
    for process in multiprocessing.active_children():
        process.kill()


def test(args: argparse.Namespace, trainer, module, data) -> dict:
    """The ErrorCounts of each test set with the best checkpoint; nothing for a run that was cut short."""
    if args.fast_dev_run or trainer.interrupted:
        return {}
    best = trainer.checkpoint_callback.best_model_path
    if args.average_last:
        best = average_last(trainer, module, data) or best
    if not args.test_sets:
        return {}
    trainer.test(module, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
    if trainer.is_global_zero:
        report(args, module.results, best)
    return module.results


def average_last(trainer, module, data) -> str | None:
    """Writes `averaged.ckpt`, the mean of the last epochs' weights; it becomes best.ckpt if its val WER is lower.

    Returns its path then, else None. Raises UsageError where no epoch was kept for it.
    """
    from utils.training.checkpointing import LatestCheckpoints, link_best

    latest = next(callback for callback in trainer.callbacks if isinstance(callback, LatestCheckpoints))
    if not latest.paths:
        raise UsageError("--average_last: no epoch was kept for it: give the flag before the last epochs are trained")
    best = trainer.checkpoint_callback
    path = Path(best.dirpath, "averaged.ckpt")
    if trainer.is_global_zero:
        write_averaged(latest.paths, path)
    trainer.strategy.barrier("averaged.ckpt")
    trainer.validate(module, datamodule=data, ckpt_path=str(path), weights_only=True, verbose=False)
    wer = float(trainer.callback_metrics["val/wer"])
    chosen = wer < float(best.best_model_score)
    if trainer.is_global_zero:
        print(f"mean of the last {len(latest.paths)} epochs: val WER {100 * wer:.2f} %, "
              f"{'now' if chosen else 'not'} the best ({100 * float(best.best_model_score):.2f} %)", flush=True)
        if chosen:
            link_best(path)
    return str(path) if chosen else None


def main(argv: list[str] | None = None) -> None:
    """Leaves with status 2 and one line where a flag, a file or a checkpoint is wrong."""
    keep_large_blocks()
    keep_few_kernels()
    from dotenv import load_dotenv

    load_dotenv(Path(__file__).parent / ".env")
    os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")
    with one_line_errors("train.py"):
        args = parse_arguments(argv)
        if args.print_model:
            print(describe(build_network(args, find_vocabulary(args))))
            return
        train(args)


if __name__ == "__main__":
    main()
