#!/usr/bin/env python
"""Transcribes audio files.

    python inference.py --checkpoint X.ckpt --audio a.wav
    python inference.py --checkpoint X.ckpt --audio b.flac recordings/ --output_format json --output_dir out

The exit status is 0 where every file was transcribed, 1 where some could not be, 2 where a flag or the
checkpoint is wrong.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from models import Recognizer
from utils.audio import EXTENSIONS, SAMPLE_RATE, AudioError, load_audio
from utils.checkpoint import CheckpointError
from utils.cli import OneLineParser, UsageError, fail, positive_int
from utils.writers import WRITERS, Transcript, Writer


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Raises UsageError."""
    parser = OneLineParser(prog="inference.py", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="a checkpoint that train.py wrote")
    parser.add_argument("--audio", required=True, nargs="+", help="files, or folders to search for audio files")
    parser.add_argument("--output_format", choices=sorted(WRITERS), default="txt", help="of each transcript")
    parser.add_argument("--output_dir", type=Path, help="one file a recording there, in place of standard output")
    parser.add_argument("--batch_size", type=positive_int, default=8, help="files at a time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="e.g. cpu, cuda:1")
    parser.add_argument("--threads", type=positive_int, help="CPU threads; all cores by default")
    return parser.parse_args(argv)


def find_audio(arguments: list[str]) -> list[str]:
    """Files as they are given, and the sound files in folders, sorted.

    A path that does not exist stays in the list: reading it says so, and the others go on.
    """
    paths = []
    for argument in arguments:
        if os.path.isdir(argument):
            found = sorted(str(path) for path in Path(argument).rglob("*") if path.suffix.lower() in EXTENSIONS)
            if not found:
                raise UsageError(f"--audio {argument}: no {', '.join(EXTENSIONS)} in this folder")
            paths += found
        else:
            paths.append(argument)
    return paths


def read_batches(paths: list[str], size: int, failed: list[str]) -> Iterator[list[tuple[str, Tensor]]]:
    """Waveforms, `size` at a time; a file that cannot be read is named on standard error and in `failed`."""

    def readable():
        for path in paths:
            try:
                yield path, load_audio(path)
            except AudioError as error:
                print(f"inference.py: {error}", file=sys.stderr)
                failed.append(path)

    waveforms = readable()
    while batch := list(islice(waveforms, size)):
        yield batch


def transcribe(network: Recognizer, paths: list[str], size: int, failed: list[str]) -> Iterator[Transcript]:
    """The transcript of each file that can be read, in order."""
    for batch in read_batches(paths, size, failed):
        texts = network.transcribe([waveform for _, waveform in batch])
        for (path, waveform), text in zip(batch, texts, strict=True):
            yield Transcript(path, text, round(len(waveform) / SAMPLE_RATE, 3))


def output_paths(paths: list[str], folder: Path, writer: Writer) -> dict[str, Path]:
    """The file of each recording. Raises UsageError where two recordings would share one."""
    targets = {path: folder / f"{Path(path).stem}.{writer.extension}" for path in paths}
    shared = [name for name, count in Counter(targets.values()).items() if count > 1]
    if shared:
        raise UsageError(f"--output_dir: several recordings would be written to {shared[0]}; transcribe them apart")
    return targets


def write(transcripts: Iterator[Transcript], paths: list[str], args: argparse.Namespace) -> None:
    """To standard output, a line a file, named where there are several; or to a file each."""
    writer = WRITERS[args.output_format]
    if args.output_dir:
        targets = output_paths(paths, args.output_dir, writer)
        args.output_dir.mkdir(parents=True, exist_ok=True)
    for transcript in transcripts:
        line = writer.format(transcript)
        if args.output_dir:
            target = targets[transcript.audio]
            beside = target.with_name(f".{target.name}.part")
            beside.write_text(line + "\n", encoding="utf-8")
            beside.replace(target)
        else:
            named = len(paths) > 1 and args.output_format == "txt"
            print(f"{transcript.audio}: {line}" if named else line, flush=True)


def load_network(args: argparse.Namespace) -> Recognizer:
    """The checkpoint's network on the device. Raises UsageError or CheckpointError."""
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {args.device}: {str(error).splitlines()[0]}") from None
    return Recognizer.from_checkpoint(args.checkpoint, device)


def main(argv: list[str] | None = None) -> None:
    """Leaves with the exit status that the module states."""
    try:
        args = parse_arguments(argv)
        if args.threads:
            torch.set_num_threads(args.threads)
        paths = list(dict.fromkeys(find_audio(args.audio)))
        network = load_network(args)
        failed: list[str] = []
        write(transcribe(network, paths, args.batch_size, failed), paths, args)
    except (UsageError, CheckpointError) as error:
        fail("inference.py", error)
    except OSError as error:
        fail("inference.py", f"{error.filename or args.output_dir}: {error.strerror}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
