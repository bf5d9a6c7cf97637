#!/usr/bin/env python
"""Transcribes audio files.

    python inference.py --audio a.wav
    python inference.py --checkpoint X.ckpt --audio b.flac recordings/ --output_format srt --output_dir out
    python inference.py --checkpoint X.ckpt --audio a.wav --decoder beam --lm X.arpa
    arecord -f S16_LE -r 16000 -t raw | python inference.py --stream

The exit status is 0 where every file was transcribed, 1 where some could not be, 2 where a flag, the
checkpoint or the language model is wrong.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while packages are imported, Ctrl-C shows no traceback

import argparse
import errno
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from models import Recognizer, Transcriber
from utils.audio import AudioError, probe_seconds
from utils.checkpoint.pretrained import DEFAULT, STREAMING
from utils.cli.config import parse_with_config
from utils.cli.decoding import own_decoding
from utils.cli.parser import OneLineParser, add_constructor_flags
from utils.cli.recordings import find_recordings, output_stems, readable_paths
from utils.cli.values import positive_float, positive_int, thread_count
from utils.decoding.options import DecodingOptions
from utils.errors import UsageError, UserError, one_line_errors, printable
from utils.files.atomic import atomic_write
from utils.files.folders import make_writable
from utils.process import find_device, interruptible_input
from utils.report.writers import WRITERS
from utils.types import Transcript


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of every flag."""
    parser = OneLineParser(prog="inference.py", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a checkpoint that train.py wrote, or the name of a network in "
                        f"pretrained/; {DEFAULT} where none is given, {STREAMING} for --stream")
    parser.add_argument("--audio", nargs="+", default=[], help="files, folders, patterns, or - for standard input")
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=False,
                        help="text as it comes, of WAV or raw 16 kHz 16-bit mono audio on standard input")
    parser.add_argument("--output_format", choices=[*sorted(WRITERS), "all"], default="txt", help="of each transcript")
    parser.add_argument("--output_dir", type=Path, help="one file a recording there, in place of standard output")
    parser.add_argument("--batch_size", type=positive_int, default=8, help="windows of 36 s at a time")
    parser.add_argument("--segment_seconds", type=positive_float, default=15.0,
                        help="longest piece for an attention model: about the longest that it was trained on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="e.g. cpu, cuda:1")
    parser.add_argument("--threads", type=thread_count, help="CPU threads; all cores by default")
    parser.add_argument("--config", help="YAML file of flags, such as `evaluate.py --tune` writes")
    add_constructor_flags(parser, DecodingOptions, title="decoding", aliases={"beam_size": "beam_width"})
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags, those of the config file among them; the command line wins. Raises UsageError."""
    parser, argv = build_parser(), sys.argv[1:] if argv is None else argv
    args = parse_with_config(parser, argv)
    if bool(args.audio) == args.stream:
        raise UsageError("give either --audio FILES or --stream")
    if args.stream and (args.output_dir or args.output_format != "txt" or args.decoder != "greedy"):
        raise UsageError("--stream writes text to standard output, as it comes and by greedy decoding: leave out "
                         "--decoder, --output_dir and --output_format")
    if args.output_format == "all" and not args.output_dir:
        raise UsageError("--output_format all needs --output_dir")
    network = args.checkpoint or (STREAMING if args.stream else DEFAULT)
    own = own_decoding(args, network, parser)
    if not args.checkpoint:
        print(f"inference.py: no --checkpoint, so the pretrained network {network} is used", file=sys.stderr)
    return parse_with_config(parser, argv, below=[f"--checkpoint={network}", *own])


def build_transcriber(args: argparse.Namespace) -> Transcriber:
    """Loads the network and what its decoder needs. Raises UserError."""
    options = DecodingOptions.from_flags(args)
    network = Recognizer.from_checkpoint(args.checkpoint, find_device(args.device))
    options.note_idle(network.name, network.autoregressive)
    try:
        return Transcriber(network, options, batch_size=args.batch_size, segment_seconds=args.segment_seconds)
    except UserError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None


def transcribe(args: argparse.Namespace, transcriber: Transcriber, paths: list[str]) -> list[AudioError]:
    """Transcribes recordings in order, with a progress bar on a terminal. Returns what could not be done."""
    refused = []

    def refuse(error: AudioError) -> None:
        refused.append(error)
        report(error)

    write = partial(write_files, refuse=refuse) if args.output_dir else print_transcripts
    total = sum(map(seconds_of, paths)) if sys.stderr.isatty() else None
    bar = tqdm(total=total, unit="s of audio", leave=False, disable=total is None)
    with readable_paths(paths, refuse) as names, bar:
        transcripts = transcriber.transcribe_all(
            names, lambda error: refuse(AudioError(names[error.path], error.reason)),
            lambda seconds: bar.update(round(seconds)))
        write(args, (one._replace(audio=names[one.audio]) for one in transcripts), paths)
    return refused


def report(error: AudioError) -> None:
    """Says on standard error what is not transcribed, and why."""
    tqdm.write(f"inference.py: {error}", file=sys.stderr)


def seconds_of(path: str) -> int:
    """Returns a duration for the progress bar, 0 for what cannot be read."""
    try:
        return round(probe_seconds(path))
    except AudioError:
        return 0


def write_files(args: argparse.Namespace, transcripts: Iterator[Transcript], paths: list[str],
                refuse: Callable[[AudioError], None]) -> None:
    """Writes a file per recording and format to `--output_dir`; calls `refuse` for a name that is too long."""
    writers = list(WRITERS.values()) if args.output_format == "all" else [WRITERS[args.output_format]]
    stems = output_stems(paths)
    for transcript in transcripts:
        stem = args.output_dir / stems[transcript.audio]
        for writer in writers:
            try:
                stem.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(f"{stem}.{writer.extension}", f"{writer.header}{writer.format(transcript)}\n")
            except OSError as error:  # any other, such as a full disk, concerns all recordings
                if error.errno != errno.ENAMETOOLONG:
                    raise
                refuse(AudioError(transcript.audio, f"no .{writer.extension} of it: the name would be too long; "
                                                    "rename the recording"))


def print_transcripts(args: argparse.Namespace, transcripts: Iterator[Transcript], paths: list[str]) -> None:
    """Prints transcripts as they come; lines of text with the name of their recording where there are several."""
    writer, several = WRITERS[args.output_format], len(paths) > 1
    if several and writer.extension in ("srt", "vtt"):
        raise UsageError(f"--output_format {writer.extension}: several recordings need --output_dir")
    sys.stdout.write(writer.header)
    for transcript in transcripts:
        lines = writer.format(transcript)
        if several and writer.extension == "txt":
            lines = "\n".join(f"{printable(transcript.audio)}: {line}" for line in lines.split("\n"))
        if lines or writer.extension != "tsv":
            print(lines, flush=True)


def stream(transcriber: Transcriber) -> None:
    """Prints text as it comes, of standard input, until that ends or Ctrl-C does. Raises UsageError."""
    from models.components.streaming import StreamingError
    from models.inference.streaming import StreamingRecognizer
    from utils.wav import read_stream

    try:
        recognizer = StreamingRecognizer(transcriber.network)
        with interruptible_input() as source:
            for samples in read_stream(source):
                print(recognizer.feed(samples), end="", flush=True)
            print(recognizer.finish(), flush=True)
    except (StreamingError, AudioError) as error:
        raise UsageError(f"--stream: {error}") from None


def main(argv: list[str] | None = None) -> None:
    """Ends with the exit status that the module states."""
    with one_line_errors("inference.py", less_memory="a smaller --batch_size needs less"):
        args = parse_arguments(argv)
        if args.threads:
            torch.set_num_threads(args.threads)
        if args.output_dir:
            make_writable(args.output_dir)
        paths, refused = find_recordings(args.audio)
        for error in refused:
            report(error)
        with build_transcriber(args) as transcriber:
            if args.stream:
                stream(transcriber)
            else:
                refused += transcribe(args, transcriber, paths)
        raise SystemExit(1 if refused else 0)


if __name__ == "__main__":
    main()
