#!/usr/bin/env python
"""Trains a recogniser.

    python train.py -g 4 --epochs 50                            LibriSpeech, downloaded where it is missing
    python train.py --config configs/deepspeech2_digits.yaml    a recipe; flags after it win
    python train.py --checkpoint_path auto ...                  the same command goes on where it stopped
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while packages are imported, Ctrl-C shows no traceback

import argparse
import os
import sys
from pathlib import Path

import torch

from data import readers
from data.options import TrainingDataOptions
from models import Recognizer
from models.components.encoder_layer import prepare_layers
from models.optim import OptimizerConfig
from models.transfer import freeze, kept_vocabulary, take_weights
from utils.audio import SAMPLE_RATE
from utils.cli.config import parse_with_config, peek, read_yaml
from utils.cli.parser import OneLineParser, add_constructor_flags, pick_arguments
from utils.errors import UsageError, one_line_errors
from utils.normalizers import NORMALIZERS
from utils.process import (
    draw_to_files,
    end_children,
    importing,
    is_first_process,
    keep_few_kernels,
    keep_large_blocks,
    quiet_packages,
    say,
)
from utils.tokenizer import learn_vocabulary
from utils.training.flags import VOCAB_SIZE, add_run_flags
from utils.training.launch import Devices, choose_devices, forget_other_launchers

PROJECT = "speech-recognition"
DEFAULT_MODEL = "deepspeech2"


def build_parser(model: str) -> argparse.ArgumentParser:
    """Returns the parser of every flag: the run's, and those of the data, the optimiser and the network."""
    parser = OneLineParser(prog="train.py", description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", default=model, choices=sorted(Recognizer.registry), help="network")
    parser.add_argument("--config", help="YAML file of flags; the command line wins")
    add_run_flags(parser)
    add_constructor_flags(parser, TrainingDataOptions, title="data", aliases={"num_workers": "-w"})
    add_constructor_flags(parser, OptimizerConfig, title="optimiser and schedule", aliases={"learning_rate": "-lr"})
    add_constructor_flags(parser, Recognizer.registry[model], leave_out=["vocabulary"])  # which the data say
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses flags and the config file, which the command line wins over. Raises UsageError."""
    argv = sys.argv[1:] if argv is None else argv
    config, model = peek("--config", argv), peek("--model", argv, "-m")
    where = "--model" if model else f"{config}: model"
    model = str(model or (read_yaml(config).get("model") if config else None) or DEFAULT_MODEL)
    if model not in Recognizer.registry:
        raise UsageError(f"{where}: {model!r} is none of {', '.join(sorted(Recognizer.registry))}")
    parser = build_parser(model)
    args = parse_with_config(parser, argv)
    if args.vocab_size and args.tokenizer != "bpe":
        raise UsageError(f"--vocab_size {args.vocab_size}: goes with --tokenizer bpe")
    if is_first_process():
        note_idle_flags(args, parser)
    if args.output_dir is None:
        args.output_dir = str(Path("runs", Path(args.config).stem if args.config else args.model))
    return args


IDLE = {  # flags, and what they need to have an effect
    "n_mfcc": ("features", "mfcc"), "mingru_scan": ("rnn_type", "mingru"), "lookahead": ("bidirectional", False)}


def note_idle_flags(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Names on standard error the flags of the network that were given and do nothing, or not what they say."""
    given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    for name, (other, needed) in IDLE.items():
        if name in given and getattr(args, other) != needed:
            flag = f"--{other} {needed}" if needed else f"--no-{other}"
            print(f"note: --{name} {given[name]} has no effect without {flag}", file=sys.stderr, flush=True)
    bins = args.n_mfcc if args.features == "mfcc" else args.n_mels
    if given.get("freq_width", 0) > bins:
        print(f"note: --freq_width {args.freq_width}: there are {bins} bins, so a mask may cover all of them",
              file=sys.stderr, flush=True)


def find_vocabulary(args: argparse.Namespace, saved: dict) -> list[str] | None:
    """Returns the pieces of --tokenizer bpe: a checkpoint's, or learnt from the training transcripts.

    Those of --init_from are kept where its alphabet is the same, and --vocab_size does not ask for another number.
    `saved` are the options of the network that the run goes on from. Every process learns the same. Raises UsageError,
    DataError or CheckpointError.
    """
    if args.tokenizer != "bpe":
        return None
    if saved:
        return saved.get("vocabulary")
    kept = args.init_from and kept_vocabulary(args.init_from, alphabet=args.alphabet, vocab_size=args.vocab_size)
    if kept:
        return kept
    options, size = TrainingDataOptions(**pick_arguments(TrainingDataOptions, args)), args.vocab_size or VOCAB_SIZE
    root = Path(options.data_root).expanduser()
    names = [name for name, _ in options.train_factors()]
    missing = [name for name in names if not readers.is_there(root, name)]
    if missing and args.print_model:  # which is to take seconds, not hours of download
        raise UsageError(f"--print_model: the subwords of --tokenizer bpe are learnt from {', '.join(missing)}, which "
                         f"is not under {root}: give --train_sets or --init_from that are there")
    readers.download_missing(root, names, url=options.librispeech_url)
    texts = readers.read_transcripts(root, names, normalizer=NORMALIZERS[options.text_normalizer])
    try:
        vocabulary = learn_vocabulary(texts, alphabet=args.alphabet, vocab_size=size)
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from None
    say(f"{size} pieces learnt from {len(texts):,} transcripts: {' '.join(vocabulary[:8])} ...")
    return vocabulary


def build_network(args: argparse.Namespace, saved: dict) -> Recognizer:
    """Builds the network of the flags; `saved` are the options of the checkpoint that the run goes on from, or {}.

    Raises UsageError where flags do not fit together, and as `find_vocabulary` does.
    """
    options = {**pick_arguments(Recognizer.registry[args.model], args), "vocabulary": find_vocabulary(args, saved)}
    try:
        network = Recognizer.build(args.model, **options)
        with torch.no_grad():  # sizes that do not fit together are found out by a second of silence
            network.decode(network.eval().encode(torch.zeros(1, SAMPLE_RATE), torch.tensor([SAMPLE_RATE])))
        prepare_layers(network.train(), recompute=args.gradient_checkpointing, compiled=args.compile)
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UsageError(f"the {args.model} network cannot be built: {error}") from None
    if args.freeze:
        say(freeze(network, args.freeze))
    return network


def print_network(network: Recognizer) -> None:
    """Prints the network's layers and its exact number of trainable parameters."""
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    print(f"{network}\n{count:,} parameters")


def train(args: argparse.Namespace) -> tuple:
    """Trains a network, then tests the checkpoint with the best val WER.

    Returns the trainer and the test sets' ErrorCounts by name (empty where nothing was tested).
    """
    devices = choose_devices(args.gpus, args.cpu_processes, args.nodes)
    forget_other_launchers(devices)
    with importing():
        import lightning

        from data.datamodule import LibriSpeechDataModule
        from models.lightning_module import SpeechModule
        from utils.training.folder import output_folder
        from utils.training.resuming import check_same_network, resume_from

    quiet_packages()  # after the import, which sets its own levels
    lightning.seed_everything(args.seed, workers=True, verbose=False)
    with output_folder(args):
        checkpoint, saved = resume_from(args)
        network = build_network(args, saved)
        if checkpoint:
            check_same_network(args, checkpoint, saved, network)
        elif args.init_from:
            say(take_weights(network, args.init_from))
        data = LibriSpeechDataModule(
            TrainingDataOptions(**pick_arguments(TrainingDataOptions, args)), network.tokenizer,
            output_frames=network.output_frames if network.trained_by_ctc else None, overfit=bool(args.overfit_batches))
        data.prepare_data()  # while no process waits for another one, which it would do for half an hour at most
        module = SpeechModule(network, OptimizerConfig(**pick_arguments(OptimizerConfig, args)), seed=args.seed)
        return fit_and_test(args, devices, module, data, checkpoint)


def fit_and_test(args: argparse.Namespace, devices: Devices, module, data, checkpoint: str | None) -> tuple:
    """Fits and tests a module, going on from a checkpoint if there is one. Returns the trainer and the ErrorCounts."""
    from utils.training.loggers import build_logger, close_logger
    from utils.training.resuming import explain
    from utils.training.signals import Interrupted
    from utils.training.trainer import build_trainer

    output = Path(args.output_dir)
    logger = None if args.fast_dev_run else build_logger(
        args.logger, output_dir=output, project=PROJECT, name=output.name, resumed=checkpoint is not None)
    try:
        trainer = build_trainer(args, devices, logger)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return trainer, test(args, trainer, module, data)
    except Interrupted as interruption:
        raise SystemExit(interruption.status if is_first_process() else 0) from None
    except RuntimeError as error:
        raise explain(error, module) from error
    finally:
        close_logger(logger)
        end_children()


def test(args: argparse.Namespace, trainer, module, data) -> dict:
    """Returns the ErrorCounts of each test set with the best checkpoint; none for a run that was cut short."""
    from utils.training.averaging import average_last
    from utils.training.folder import write_results

    if args.fast_dev_run or trainer.interrupted:
        return {}
    best = average_last(trainer, module, data) if args.average_last else None
    if not args.test_sets:
        return {}
    best = best or str(trainer.checkpoint_callback.best)
    trainer.test(module, datamodule=data, ckpt_path=best, weights_only=True, verbose=False)
    if trainer.is_global_zero:
        write_results(args.output_dir, module.results, best)
    return module.results


def prepare_process() -> None:
    """Settles what must be settled before the first tensor: allocator, kernels, environment variables of `.env`."""
    from dotenv import load_dotenv

    keep_large_blocks()
    keep_few_kernels()
    draw_to_files()
    path = Path(__file__).with_name(".env")
    try:
        load_dotenv(path, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8: save it as UTF-8") from None
    os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")


def main(argv: list[str] | None = None) -> None:
    """Ends with status 0, with 2 and one line where something that was given is wrong, or with a signal's status."""
    with one_line_errors("train.py", output_matters=False):
        prepare_process()
        args = parse_arguments(argv)
        if args.print_model:
            print_network(build_network(args, saved={}))
        else:
            train(args)


if __name__ == "__main__":
    main()
