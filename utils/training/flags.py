"""The flags of a training run itself; those of data, optimiser and network come from their constructors."""

import sys
from argparse import ArgumentParser, BooleanOptionalAction

from utils.cli.values import (
    count_or_share,
    nonnegative_float,
    nonnegative_int,
    positive_count_or_share,
    positive_int,
    share,
    steps_or_minutes,
    subword_count,
)

# Not "bf16-true" and the like, which would round the waveforms and positional encodings as well.
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "64-true", "32", "16", "bf16", "64")
VOCAB_SIZE = 500  # of --tokenizer bpe
LOGGERS = ("comet", "tensorboard", "csv", "none")


def add_run_flags(parser: ArgumentParser) -> None:
    """Adds the flags of the run itself: the machine, the steps, and what is kept."""
    _add_machine_flags(parser.add_argument_group("machine"))
    _add_training_flags(parser.add_argument_group("training"))
    _add_output_flags(parser.add_argument_group("run"))


def _add_machine_flags(group) -> None:
    group.add_argument("-g", "--gpus", type=nonnegative_int, default=1, help="GPUs per node; 0 for the CPU")
    group.add_argument("--nodes", type=positive_int, default=1, help="number of machines")
    group.add_argument("--cpu_processes", type=positive_int, default=1, help="DDP processes on a machine without GPUs")
    group.add_argument("-db", "--dist_backend", "--strategy",
                       help="Lightning strategy: ddp for several devices, else auto")
    group.add_argument("--precision", choices=PRECISIONS,
                       help="bf16-mixed where the GPU has it, else 16-mixed; 32-true on a CPU")
    group.add_argument("--compile", action=BooleanOptionalAction, default=False,
                       help="compile the convolutions and the recurrent layers by torch.compile")
    group.add_argument("--gradient_checkpointing", action=BooleanOptionalAction, default=False,
                       help="recompute activations in the backward pass to save memory")
    group.add_argument("--deterministic", action=BooleanOptionalAction, default=False,
                       help="algorithms that give the same bits in every run, also on a GPU, where they are slower")


def _add_training_flags(group) -> None:
    group.add_argument("--epochs", type=positive_int, default=50, help="passes over the training sets")
    group.add_argument("--vocab_size", type=subword_count,
                       help=f"subwords of --tokenizer bpe, learnt from the transcripts; {VOCAB_SIZE} by default")
    group.add_argument("--init_from", metavar="CHECKPOINT",
                       help="initialise layers of equal names and shapes from a .ckpt or .safetensors file, or from a "
                       "model in pretrained/ by its name")
    group.add_argument("--freeze", nargs="*", default=[], metavar="PATTERN",
                       help="do not train these parameters: patterns of their names such as cnn.* rnn.0.*")
    group.add_argument("-gc", "--grad_clip", type=nonnegative_float, default=5.0,
                       help="largest gradient norm; 0 for no clipping")
    group.add_argument("--accumulate", type=positive_int, default=1, help="batches per optimiser step")
    group.add_argument("--ema_decay", type=share, default=0.0,
                       help="exponential moving average of the weights, for evaluation and checkpoints; 0 for none")
    group.add_argument("--average_last", type=nonnegative_int, default=0, metavar="N",
                       help="average the last N epochs' weights at the end; best.ckpt if their val WER is lower")
    group.add_argument("--limit_train_batches", type=positive_count_or_share, default=1.0,
                       help="batches per epoch: a number, or a fraction such as 0.1")
    group.add_argument("--overfit_batches", type=count_or_share, default=0,
                       help="train and validate on so many batches alone, a number or a fraction; 0 for all")
    group.add_argument("--early_stop_patience", type=nonnegative_int, default=0,
                       help="stop after so many epochs without a lower val WER; 0 for never")


def _add_output_flags(group) -> None:
    group.add_argument("--output_dir", help="checkpoints and results; runs/CONFIG or runs/MODEL by default")
    group.add_argument("--checkpoint_path", help="checkpoint to resume, or auto for the newest of this run")
    group.add_argument("--checkpoint_every", type=steps_or_minutes, metavar="N|Nm",
                       help="optimiser steps, or minutes with an m, between checkpoints within an epoch")
    group.add_argument("--logger", choices=LOGGERS, default="comet", help="experiment logger")
    group.add_argument("--log_every", type=positive_int, default=20, help="steps between logged training metrics")
    group.add_argument("--fast_dev_run", action=BooleanOptionalAction, default=False,
                       help="one batch each of training, validation and test; nothing is kept")
    group.add_argument("--print_model", action=BooleanOptionalAction, default=False,
                       help="show the network and its parameter count, then stop")
    group.add_argument("--progress_bar", action=BooleanOptionalAction, default=sys.stderr.isatty(),
                       help="loss, WER and throughput as they come; without a bar, a line every minute")
