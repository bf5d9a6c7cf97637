"""Going on from a checkpoint, and what ended a run that can go on."""

import argparse
from pathlib import Path

import torch

from utils.checkpoint.reading import CheckpointError, find_checkpoint, newest_checkpoint, read_resumable
from utils.errors import UsageError, UserError, is_out_of_memory
from utils.process import say
from utils.training.folder import is_own


def resume_from(args: argparse.Namespace) -> tuple[str | None, dict]:
    """Returns the checkpoint to go on from and the options of its network; None and {} for a run that begins.

    Raises CheckpointError, and UsageError where the flags do not go on from it.
    """
    if not args.checkpoint_path:
        return None, {}
    folder, auto = Path(args.output_dir, "checkpoints"), args.checkpoint_path == "auto"
    if auto and not any(folder.glob("*.ckpt")):
        say(f"{folder}: no checkpoint yet, so this run begins anew")
        return None, {}
    path = newest_checkpoint(folder) if auto else find_checkpoint(args.checkpoint_path)
    checkpoint = read_resumable(path)
    check_optimizer(args, path, checkpoint)
    check_frozen(args, path, checkpoint)
    check_epochs(args, path, checkpoint, own=is_own(args.checkpoint_path, folder))
    if args.init_from:
        say(f"--init_from {args.init_from}: not read, this run goes on from {path}, which holds all weights")
    args.init_from = checkpoint.get("init_from")  # what config.yaml states
    return str(path), checkpoint["recognizer"]


def check_optimizer(args: argparse.Namespace, path: Path, checkpoint: dict) -> None:
    """Raises UsageError for another optimiser than the one whose state the checkpoint holds."""
    before = checkpoint.get("optimizer")
    if before != args.optimizer:
        raise UsageError(f"--optimizer was {before!r}, is {args.optimizer!r}: {path} holds the state of the first")
    if "current_model_state" in checkpoint and not args.ema_decay:
        say(f"{path}: training goes on from the moving average of the weights; without --ema_decay no other is kept")
    if args.ema_decay and "current_model_state" not in checkpoint:
        say(f"{path}: the moving average of the weights begins here")


def check_frozen(args: argparse.Namespace, path: Path, checkpoint: dict) -> None:
    """Raises UsageError for other frozen parameters: the checkpoint holds the optimiser's state of the trained ones."""
    before, now = (" ".join(sorted(set(patterns))) for patterns in (checkpoint.get("freeze", []), args.freeze))
    if before != now:
        raise UsageError(f"--freeze was {before!r}, is {now!r}: a run goes on with the parameters that it began with; "
                         f"a new run with --init_from {path} may train others")


def check_epochs(args: argparse.Namespace, path: Path, checkpoint: dict, *, own: bool) -> None:
    """Raises UsageError where a run of so many epochs would not go on from the checkpoint; `own` are the run's own.

    A finished run that is started again says so, and is tested again.
    """
    try:
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        done, begun = int(progress["processed"]), int(progress["started"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(path, "does not say how far its run had come, so that none can go on from it") from None
    if begun > args.epochs:
        place = "after" if begun == done else "in"
        raise UsageError(f"--epochs {args.epochs}: {path} stands {place} epoch {begun} already; give more to go on "
                         "from it")
    if done == args.epochs and not own:
        raise UsageError(f"--epochs {args.epochs}: {path} has trained as many, so that nothing would be trained here; "
                         "--epochs counts those of the checkpoint")
    if done == args.epochs:
        say(f"{path}: all {done} epochs are trained")


def check_same_network(args: argparse.Namespace, path: str, saved: dict, network) -> None:
    """Raises UsageError that names the flags in which the network differs from that of the checkpoint `path`."""
    flags, before = dict(network.config), dict(saved)
    if args.vocab_size and saved.get("tokenizer") == "bpe":
        flags["vocab_size"], before["vocab_size"] = args.vocab_size, network.tokenizer.ctc_size - 1
    different = [f"--{name} was {before.get(name)!r}, is {flags.get(name)!r}"
                 for name in sorted((before.keys() | flags.keys()) - {"vocabulary"})
                 if before.get(name) != flags.get(name)]
    if different:
        raise UsageError(f"{path} holds another network: {'; '.join(different)}")


def explain(error: RuntimeError, module) -> UserError:
    """Returns what to do about an error of the machine in training. Raises any other error as it is."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        audio, padded = module.batch_seconds
        return UserError(
            f"the device's memory is full at a batch of {len(module.batch_ids)} utterances, {audio:.0f} s of audio "
            f"and {padded:.0f} s with padding; --batch_seconds {max(padded // 2, 1):.0f} with --accumulate 2 is "
            "about the same training in half the memory, and --gradient_checkpointing needs less as well")
    if "DataLoader worker" in text:
        return UserError(f"a process that reads audio has died ({text[:150]}); where memory ran out, --num_workers 1 "
                         "takes less of it; --checkpoint_path auto goes on")
    if isinstance(error, torch.distributed.DistError) or "gloo" in text:
        return UserError(f"the connection to another process of the run broke ({text[-150:]}): it has died, and its "
                         "own message says why; --checkpoint_path auto goes on")
    raise error
