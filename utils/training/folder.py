"""A run's folder: held by one run at a time; its config and its results."""

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml
from lightning.pytorch.callbacks import Callback

from utils.errors import UsageError
from utils.files.atomic import PARTS, atomic_write
from utils.files.locks import exclusive_folder
from utils.metrics import ErrorCounts
from utils.process import git_revision, is_first_process


def is_own(checkpoint_path: str | None, folder: Path) -> bool:
    """Returns whether `--checkpoint_path` means a checkpoint of the run whose checkpoints lie in `folder`."""
    if not checkpoint_path or checkpoint_path == "auto":
        return checkpoint_path == "auto"
    return Path(checkpoint_path).resolve().parent == folder.resolve()


@contextmanager
def output_folder(args: argparse.Namespace) -> Iterator[None]:
    """Holds the run's folder, in which two runs would mix their checkpoints. Raises UsageError."""
    if args.fast_dev_run or not is_first_process():
        yield
        return
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("checkpoints/*.ckpt")) and not is_own(args.checkpoint_path, folder / "checkpoints"):
        raise UsageError(f"{folder} holds the checkpoints of an earlier run: go on with it by "
                         "--checkpoint_path auto, or choose another --output_dir, or delete it")
    try:
        with exclusive_folder(folder) as locked:
            if not locked:
                print(f"{folder}: its file system has no locks, so a second run in it would not be noticed")
            for part in folder.glob(f"checkpoints/{PARTS}") if locked else ():  # of a run that was killed
                part.unlink(missing_ok=True)
            yield
    except BlockingIOError:
        raise UsageError(f"{folder} is in use by another run: choose another --output_dir") from None


def write_config(args: argparse.Namespace, logger) -> None:
    """Writes every flag of the run and the revision of the code to `config.yaml` and to the logger.

    `--config` reads the file; a flag without a value is null in it.
    """
    values = {name: value for name, value in vars(args).items() if name != "config"}
    content = f"# code {git_revision()}\n" + yaml.safe_dump(values, allow_unicode=True, sort_keys=True)
    atomic_write(Path(args.output_dir, "config.yaml"), content)
    if logger is not None:
        logger.log_hyperparams({**values, "git_revision": git_revision()})


class RunConfig(Callback):
    """Writes the flags of the run, as they apply, to `config.yaml` and to the logger.

    Those of transfer are kept in checkpoints as well, for the run that goes on.
    """

    def __init__(self, flags: argparse.Namespace):
        self.flags = flags

    def on_train_start(self, trainer, module) -> None:
        """Writes them once the run goes: one that is refused leaves the file of the run before."""
        if trainer.is_global_zero:
            write_config(self.flags, trainer.logger)

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        """Adds where the first weights came from, and which parameters the optimiser's state leaves out."""
        checkpoint |= {"init_from": self.flags.init_from, "freeze": list(self.flags.freeze)}


def write_results(folder, results: Mapping[str, ErrorCounts], checkpoint: str) -> None:
    """Prints a table of the test sets' error rates and writes `results.json`."""
    relative = os.path.relpath(checkpoint, folder)  # so that the folder can be moved
    rows = {split: {"wer": counts.wer, "cer": counts.cer, "errors": counts.word_errors, "words": counts.words,
                    "utterances": counts.utterances, "checkpoint": relative}
            for split, counts in results.items()}
    print(f"\n{'test set':24}{'WER %':>8}{'CER %':>8}{'errors':>9}{'words':>9}{'utterances':>12}")
    for split, row in rows.items():
        print(f"{split:24}{100 * row['wer']:8.2f}{100 * row['cer']:8.2f}{row['errors']:9,}{row['words']:9,}"
              f"{row['utterances']:12,}")
    print(f"checkpoint: {checkpoint}", flush=True)
    atomic_write(Path(folder, "results.json"), json.dumps(rows, indent=2) + "\n")
