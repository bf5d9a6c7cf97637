#!/usr/bin/env python
"""Measures the error rates of checkpoints on test sets, and reports where the errors are.

    python evaluate.py --checkpoint X.ckpt
    python evaluate.py --checkpoint X.ckpt --decoder beam --lm X.arpa --compare_greedy --report report
    python evaluate.py --checkpoint A.ckpt B.ckpt --test_sets dev-clean dev-other --report report

Several checkpoints, or greedy decoding and beam search, are compared with the first one on the same utterances.
With --tune the weights of decoding that give the lowest WER on validation sets are searched in place of that:

    python evaluate.py --checkpoint X.ckpt --tune --val_sets dev-clean --lm X.arpa --output decoding.yaml
    python evaluate.py --checkpoint X.ckpt --config decoding.yaml

The exit status is 0, or 2 where a flag, a checkpoint, a language model or the data is wrong.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while packages are imported, Ctrl-C shows no traceback

import argparse
import shlex
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from data.options import DataOptions, TrainingDataOptions
from models import Recognizer
from models.inference.tuning import tune_decoding
from utils.audio import SAMPLE_RATE
from utils.checkpoint.averaging import average_checkpoints, best_checkpoints
from utils.checkpoint.reading import find_checkpoint, network_weights, original_of
from utils.cli.config import parse_with_config
from utils.cli.decoding import own_decoding
from utils.cli.parser import OneLineParser, add_constructor_flags, pick_arguments
from utils.cli.values import nonnegative_int, positive_int, thread_count
from utils.decoding.decoder import Decoder
from utils.decoding.options import DecodingOptions
from utils.decoding.tune import TuningOptions, build_grid
from utils.errors import UsageError, one_line_errors
from utils.files.atomic import atomic_write
from utils.files.folders import make_writable
from utils.process import draw_to_files, find_device, git_revision, importing, quiet_packages
from utils.report.html import build_html, illustrate
from utils.report.report import Result, build_outcomes, report_files, short_names, table, worst_utterances
from utils.report.tuning import summarize, write_tuning
from utils.types import Batch

if TYPE_CHECKING:
    from data.datamodule import LibriSpeechDataModule


class System(NamedTuple):
    """A network with one way of decoding."""

    name: str
    checkpoint: str  # short and unique
    weights: list[str]  # paths of the checkpoints that they come from
    network: Recognizer
    decoder: Decoder


@dataclass
class Output:
    """The texts of a split so far, by one system."""

    texts: dict[str, list[str]] = field(default_factory=dict)  # n-best by id
    seconds: float = 0.0  # of network and search


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all flags."""
    parser = OneLineParser(prog="evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, nargs="+",
                        help="checkpoints that train.py wrote, or names of networks in pretrained/")
    parser.add_argument("--average", type=positive_int, default=1,
                        help="average the weights of this many checkpoints, the best by val WER of each one's folder")
    parser.add_argument("--compare_greedy", action=argparse.BooleanOptionalAction, default=False,
                        help="greedy decoding too, to compare --decoder beam with")
    parser.add_argument("--report", type=Path, help="folder for report.html, hypotheses, alignments, sclite files")
    parser.add_argument("--worst", type=nonnegative_int, default=20, help="utterances with sound and figures there")
    parser.add_argument("--limit", type=positive_int, help="utterances per split, spread over it, for a quick look")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="e.g. cpu, cuda:1")
    parser.add_argument("--threads", type=thread_count, help="CPU threads; all cores by default")
    parser.add_argument("--config", help="YAML file of flags; the command line wins")
    add_constructor_flags(parser, DataOptions, title="data", aliases={"num_workers": "-w"})
    add_constructor_flags(parser, DecodingOptions, title="decoding", aliases={"beam_size": "beam_width"})
    add_constructor_flags(parser, TuningOptions, title="tuning")
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags, those of the config file among them; the command line wins. Raises UsageError."""
    parser, argv = build_parser(), sys.argv[1:] if argv is None else argv
    args = parse_with_config(parser, argv)
    if len(args.checkpoint) == 1:
        args = parse_with_config(parser, argv, below=own_decoding(args, args.checkpoint[0], parser))
    args.command_line = f"python evaluate.py {shlex.join(argv)}"
    args.checkpoint, args.test_sets = list(dict.fromkeys(args.checkpoint)), list(dict.fromkeys(args.test_sets))
    args.data = DataOptions(**pick_arguments(DataOptions, args))
    args.tuning = TuningOptions(**pick_arguments(TuningOptions, args))
    if args.tune and (len(args.checkpoint) > 1 or args.compare_greedy or args.report):
        raise UsageError("--tune takes one --checkpoint, and neither --compare_greedy nor --report")
    if not args.test_sets:
        raise UsageError("--test_sets: name what to measure")
    args.decoder = "beam" if args.tune else args.decoder
    if args.compare_greedy and args.decoder == "greedy":
        raise UsageError("--compare_greedy: there is only greedy decoding to compare; add --decoder beam")
    return args


def decoding_options(args: argparse.Namespace) -> dict[str, DecodingOptions]:
    """Returns the ways of decoding, by a name for each. Raises UsageError."""
    options = DecodingOptions.from_flags(args)
    if options.decoder == "greedy":
        return {"greedy": options}
    name = f"beam {options.beam_size}" + (f" + {Path(options.lm).name}" if options.lm else "")
    greedy = DecodingOptions(beam_size=1)
    return {"greedy": greedy, name: options} if args.compare_greedy else {name: options}


def load_networks(args: argparse.Namespace) -> dict[str, tuple[list[str], Recognizer]]:
    """Returns paths of weights and the network on the device, by short name. Raises UsageError or CheckpointError."""
    device = find_device(args.device)
    paths = short_names([str(find_checkpoint(path)) for path in args.checkpoint])
    loaded = {name: load_network(path, args.average, device) for name, path in paths.items()}
    if len({network.tokenizer.characters for _, network in loaded.values()}) > 1:
        raise UsageError("--checkpoint: the networks have different alphabets, so they cannot be compared on the same "
                         "utterances; evaluate them one by one")
    return loaded


def load_network(path: str, average: int, device: torch.device) -> tuple[list[str], Recognizer]:
    """Returns a checkpoint's network, or the mean of the best ones in its folder. Raises CheckpointError."""
    if average == 1:
        return [str(original_of(path))], Recognizer.from_checkpoint(path, device)
    best = best_checkpoints(Path(path).parent, average)
    network, weights = Recognizer.from_checkpoint(best[0], device), average_checkpoints(best)
    network.load_state_dict(network_weights({"state_dict": weights}))
    print(f"weights: mean of {', '.join(map(str, best))}")
    return [str(one) for one in best], network


def build_systems(args: argparse.Namespace, stack: ExitStack) -> list[System]:
    """Returns every network with every way of decoding, ready to be timed; `stack` closes the decoders.

    Raises UsageError, CheckpointError, LanguageModelError or ImportError, before any audio is read.
    """
    systems, options = [], decoding_options(args)
    for checkpoint, (weights, network) in load_networks(args).items():
        list(options.values())[-1].note_idle(network.name, network.autoregressive)
        for name, decoding in options.items():
            decoder = stack.enter_context(Decoder(decoding, network.tokenizer))
            name = f"{checkpoint} {name}" if len(args.checkpoint) > 1 else name
            systems.append(System(name, checkpoint, weights, network, decoder))
            waveform, count = torch.zeros(1, SAMPLE_RATE), torch.tensor([SAMPLE_RATE])
            with torch.inference_mode():  # a second of silence loads what the search needs
                network.search(network.encode(waveform.to(args.device), count.to(args.device)), decoder)
    return systems


def build_data(args: argparse.Namespace, network: Recognizer) -> "LibriSpeechDataModule":
    """Returns the data module of the flags, its indexes cut to --limit. Raises DataError."""
    with importing():
        from data.datamodule import LibriSpeechDataModule

    quiet_packages()
    splits = {"train_sets": [], "val_sets": args.tuning.val_sets, "test_sets": [] if args.tune else args.test_sets}
    options = TrainingDataOptions(**vars(args.data) | splits)
    data = LibriSpeechDataModule(options, network.tokenizer)
    data.prepare_data()
    for index in data.indexes() if args.limit else []:
        total, kept = len(index.utterances), min(args.limit, len(index.utterances))
        index.utterances = index.utterances.take(i * total // kept for i in range(kept))
    return data


def evaluate(systems: list[System], data, device: str) -> list[Result]:
    """Returns the results of every system on every split of the data module, the first system's of each split first."""
    from tqdm import tqdm

    results = []
    for name, loader in zip(data.test_sets, data.test_dataloader(), strict=True):
        outputs = [Output() for _ in systems]
        for batch in tqdm(loader, desc=name, unit=" batches", leave=False, disable=not sys.stderr.isatty()):
            recognize(batch, systems, outputs, device)
        utterances = data.index(name).utterances
        for system, output in zip(systems, outputs, strict=True):
            outcomes = build_outcomes(utterances, [output.texts[utterance.id] for utterance in utterances])
            results.append(Result(system=system.name, split=name, outcomes=outcomes, compute_seconds=output.seconds,
                                  nbest=system.decoder.options.nbest))
    return results


@torch.inference_mode()
def recognize(batch: Batch, systems: list[System], outputs: list[Output], device: str) -> None:
    """Adds every system's texts of a batch to its output; systems of one network share the encoding."""
    for _, sharing in groupby(zip(systems, outputs, strict=True), key=lambda pair: pair[0].checkpoint):
        sharing = list(sharing)
        network, started = sharing[0][0].network, time.perf_counter()
        encoding = network.encode(batch.waveforms.to(device), batch.sample_counts.to(device))
        encoding_seconds = seconds_since(started, device)
        for system, output in sharing:
            started = time.perf_counter()
            found = network.search(encoding, system.decoder)
            output.seconds += encoding_seconds + seconds_since(started, device)
            output.texts.update((name, [one.text for one in n_best])
                                for name, n_best in zip(batch.ids, found, strict=True))


def seconds_since(started: float, device: str) -> float:
    """Returns the wall-clock time since `started`, once the device has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def tune(args: argparse.Namespace, system: System, data) -> None:
    """Writes the flags with the lowest WER on the validation sets to --output. Raises OSError."""
    options = system.decoder.options
    grid = build_grid(system.network, options, args.tuning.grid)
    tuning = tune_decoding(system.network, system.decoder, lambda: chain.from_iterable(data.val_dataloader()), grid,
                           args.tuning.rounds)
    write_tuning(args.output, tuning, options, args.command_line)
    if options.lm and tuning.best_counts.word_errors >= tuning.plain.word_errors:
        print(f"{options.lm}: no weights make it better than none; is its text like that of the validation sets?",
              file=sys.stderr)
    weights = ", ".join(f"{name} {value:g}" for name, value in tuning.best.items())
    print(f"{args.output}: {weights} of {len(tuning.surface)} points; {summarize(tuning)}")


def describe(args: argparse.Namespace, systems: list[System]) -> dict:
    """Returns what was measured and how, as plain values."""
    return {"code": git_revision(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "device": args.device,
            "data_root": args.data_root, "test_sets": args.test_sets, "limit": args.limit,
            "systems": [{"name": system.name, "weights": system.weights, "decoding": asdict(system.decoder.options)}
                        for system in systems]}


def write_report(args: argparse.Namespace, systems: list[System], results: list[Result], data) -> None:
    """Writes all files of the report. Raises OSError or AudioError."""
    networks = {system.checkpoint: system.network for system in systems}
    worst = [(row, illustrate(networks, row[0][1])) for row in worst_utterances(results, args.worst)]
    about, splits = describe(args, systems), [str(index) for index in data.indexes()]
    page = build_html(about=about, results=results, notes=splits, worst=worst)
    for name, content in {**report_files(results, {**about, "data": splits}), "report.html": page}.items():
        atomic_write(args.report / name, content)
    print(f"report: {args.report / 'report.html'}")


def prepare_outputs(args: argparse.Namespace) -> None:
    """Makes the folders to write to, before the work begins. Raises OSError."""
    for folder in filter(None, (args.report, args.output and args.output.parent)):
        make_writable(folder)


def main(argv: list[str] | None = None) -> None:
    """Evaluates or tunes; leaves with status 2 and one line where something that was given is wrong."""
    draw_to_files()
    with (one_line_errors("evaluate.py", less_memory="a smaller --batch_seconds or --batch_size needs less"),
          ExitStack() as stack):
        args = parse_arguments(argv)
        if args.threads:
            torch.set_num_threads(args.threads)
        prepare_outputs(args)
        systems = build_systems(args, stack)
        data = build_data(args, systems[0].network)
        if args.tune:
            tune(args, systems[0], data)
            return
        results = evaluate(systems, data, args.device)
        try:  # the report first: whoever reads the table may be gone
            if args.report:
                write_report(args, systems, results, data)
        finally:
            print(f"\n{table(results)}\n", flush=True)


if __name__ == "__main__":
    main()
