#!/usr/bin/env python
"""Transcribes audio files.

    python inference.py --checkpoint X.ckpt --audio a.wav
    python inference.py --checkpoint X.ckpt --audio b.flac recordings/ --output_format srt --output_dir out
    python inference.py --checkpoint X.ckpt --audio a.wav --decoder beam --lm X.arpa
    arecord -f S16_LE -r 16000 -t raw | python inference.py --checkpoint X.ckpt --stream

The exit status is 0 where every file was transcribed, 1 where some could not be, 2 where a flag, the
checkpoint or the language model is wrong.
"""

import argparse
import glob
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from models import Recognizer, Transcriber
from utils.audio import EXTENSIONS, AudioError, probe_seconds
from utils.checkpoint.reading import CheckpointError
from utils.cli.parser import (
    OneLineParser,
    add_constructor_flags,
    parse_with_config,
    positive_float,
    positive_int,
)
from utils.decoding.options import DecodingOptions
from utils.errors import UsageError, one_line_errors
from utils.files.atomic import atomic_write
from utils.report.writers import WRITERS, Writer
from utils.types import Transcript

STDIN = "-"


def build_parser() -> argparse.ArgumentParser:
    """Every flag."""
    parser = OneLineParser(prog="inference.py", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="a checkpoint that train.py wrote")
    parser.add_argument("--audio", nargs="+", default=[], help="files, folders, patterns, or - for standard input")
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=False,
                        help="text as it comes, of WAV or raw 16 kHz 16-bit mono audio on standard input")
    parser.add_argument("--output_format", choices=[*sorted(WRITERS), "all"], default="txt", help="of each transcript")
    parser.add_argument("--output_dir", type=Path, help="one file a recording there, in place of standard output")
    parser.add_argument("--batch_size", type=positive_int, default=8, help="windows of 36 s at a time")
    parser.add_argument("--segment_seconds", type=positive_float, default=15.0,
                        help="longest piece for an attention model: about the longest that it was trained on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="e.g. cpu, cuda:1")
    parser.add_argument("--threads", type=positive_int, help="CPU threads; all cores by default")
    parser.add_argument("--config", help="YAML file of flags, such as `evaluate.py --tune` writes")
    add_constructor_flags(parser, DecodingOptions, title="decoding", aliases={"beam_size": "beam_width"})
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags and the config file, the command line winning. Raises UsageError."""
    args = parse_with_config(build_parser(), sys.argv[1:] if argv is None else argv)
    if bool(args.audio) == args.stream:
        raise UsageError("give either --audio FILES or --stream")
    if args.output_format == "all" and not args.output_dir:
        raise UsageError("--output_format all needs --output_dir")
    return args


def decoding(args: argparse.Namespace) -> DecodingOptions:
    """The decoding flags. Raises UsageError."""
    try:
        return DecodingOptions.from_flags(args)
    except ValueError as error:
        raise UsageError(str(error)) from None


def find_audio(arguments: list[str]) -> list[str]:
    """Files as they are given, those that patterns match, and the sound files in folders, sorted.

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
            matches = [] if os.path.exists(argument) else sorted(glob.glob(argument, recursive=True))
            paths += matches or [argument]
    return list(dict.fromkeys(paths))


def output_paths(paths: list[str], folder: Path, writers: list[Writer]) -> dict[str, list[Path]]:
    """The files of each recording, one a format. Raises UsageError where two recordings would share one."""
    stems = {path: "stdin" if path == STDIN else Path(path).stem for path in paths}
    shared = [stem for stem, count in Counter(stems.values()).items() if count > 1]
    if shared:
        raise UsageError(f"--output_dir: several recordings would be written to {folder / shared[0]}.*; "
                         "transcribe them apart")
    return {path: [folder / f"{stem}.{writer.extension}" for writer in writers] for path, stem in stems.items()}


def write(transcripts: Iterator[Transcript], paths: list[str], args: argparse.Namespace) -> None:
    """To standard output, named where there are several; or to files."""
    writers = list(WRITERS.values()) if args.output_format == "all" else [WRITERS[args.output_format]]
    if args.output_dir:
        targets = output_paths(paths, args.output_dir, writers)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        for transcript in transcripts:
            for target, writer in zip(targets[transcript.audio], writers, strict=True):
                atomic_write(target, f"{writer.header}{writer.format(transcript)}\n")
        return
    writer, several = writers[0], len(paths) > 1
    if several and writer.extension in ("srt", "vtt"):
        raise UsageError(f"--output_format {writer.extension}: several recordings need --output_dir")
    sys.stdout.write(writer.header)
    for transcript in transcripts:
        lines = writer.format(transcript)
        if several and writer.extension == "txt":
            lines = "\n".join(f"{transcript.audio}: {line}" for line in lines.split("\n"))
        if lines or writer.extension != "tsv":
            print(lines, flush=True)


def transcribe(transcriber: Transcriber, paths: list[str], failed: list[str]) -> Iterator[Transcript]:
    """The transcript of each file that can be read, in order, with a progress bar on a terminal.

    A file that cannot be read is named on standard error and in `failed`.
    """
    from tqdm import tqdm

    def refuse(error: AudioError) -> None:
        tqdm.write(f"inference.py: {names[error.path]}: {error.reason}", file=sys.stderr)
        failed.append(error.path)

    total = sum(map(seconds_of, paths)) if sys.stderr.isatty() else None
    with readable(paths) as names, tqdm(total=total, unit="s of audio", leave=False, disable=total is None) as bar:
        for transcript in transcriber.transcribe_all(names, refuse, lambda seconds: bar.update(round(seconds))):
            yield transcript._replace(audio=names[transcript.audio])


def seconds_of(path: str) -> int:
    """Duration for the progress bar, 0 for what cannot be read."""
    try:
        return round(probe_seconds(path))
    except AudioError:
        return 0


@contextmanager
def readable(paths: list[str]) -> Iterator[dict[str, str]]:
    """Paths that can be read, and the names to show; standard input is kept in a file meanwhile."""
    with tempfile.NamedTemporaryFile() as spooled:
        if STDIN in paths:
            shutil.copyfileobj(sys.stdin.buffer, spooled)
            spooled.flush()
        yield {spooled.name if path == STDIN else path: path for path in paths}


def stream(transcriber: Transcriber) -> None:
    """Text as it comes, of standard input. Raises UsageError where the network cannot."""
    from models.components.streaming import StreamingError
    from models.inference.streaming import StreamingRecognizer
    from utils.wav import read_stream

    try:
        recognizer = StreamingRecognizer(transcriber.network)
        for samples in read_stream(sys.stdin.buffer):
            print(recognizer.feed(samples), end="", flush=True)
    except (StreamingError, AudioError) as error:
        raise UsageError(f"--stream: {error}") from None
    print(recognizer.finish(), flush=True)


def build_transcriber(args: argparse.Namespace) -> Transcriber:
    """Of the flags. Raises UsageError or CheckpointError."""
    options = decoding(args)
    try:
        return Transcriber(load_network(args), options, batch_size=args.batch_size,
                           segment_seconds=args.segment_seconds)
    except CheckpointError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None


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
    failed: list[str] = []
    with one_line_errors("inference.py", less_memory="a smaller --batch_size needs less"):
        args = parse_arguments(argv)
        if args.threads:
            torch.set_num_threads(args.threads)
        paths = find_audio(args.audio)
        with build_transcriber(args) as transcriber:
            if args.stream:
                stream(transcriber)
            else:
                write(transcribe(transcriber, paths, failed), paths, args)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
