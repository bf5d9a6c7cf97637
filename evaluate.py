#!/usr/bin/env python
"""Measures the error rates of checkpoints on test sets, and reports where the errors are.

    python evaluate.py --checkpoint X.ckpt
    python evaluate.py --checkpoint X.ckpt --decoder beam --lm X.arpa --compare_greedy --report report
    python evaluate.py --checkpoint A.ckpt B.ckpt --test_sets dev-clean dev-other --report report

Several checkpoints, or greedy decoding beside beam search, are compared utterance by utterance with the
first one. The exit status is 0, or 2 where a flag, a checkpoint, a language model or the data is wrong.
"""

import argparse
import io
import os
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.librispeech import URL
from data.options import DataOptions, TrainingDataOptions
from models import Recognizer
from utils.audio import SAMPLE_RATE
from utils.checkpoint.averaging import average_checkpoints, best_checkpoints
from utils.cli.parser import (
    OneLineParser,
    add_constructor_flags,
    nonnegative_int,
    parse_with_config,
    positive_float,
    positive_int,
)
from utils.decoding.options import Decoder, DecodingOptions
from utils.errors import UsageError, one_line_errors
from utils.files.atomic import atomic_write
from utils.process import git_revision
from utils.report.html import build_page, exhibit
from utils.report.report import Result, build_outcomes, report_files, table, worst_utterances, write_files
from utils.types import Batch


class System(NamedTuple):
    """A network and a way of decoding."""

    name: str
    checkpoint: str  # short and unique
    weights: list[str]  # the checkpoints they come from
    network: Recognizer
    decoder: Decoder


@dataclass
class Heard:
    """What a system made of a split so far."""

    texts: dict[str, list[str]] = field(default_factory=dict)  # n-best by id
    seconds: float = 0.0  # of network and search


def build_parser() -> argparse.ArgumentParser:
    """Every flag."""
    parser = OneLineParser(prog="evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, nargs="+", help="checkpoints that train.py wrote")
    parser.add_argument("--average", type=positive_int, default=1,
                        help="mean of the weights of so many checkpoints, the best by val WER of each one's folder")
    parser.add_argument("--compare_greedy", action=argparse.BooleanOptionalAction, default=False,
                        help="greedy decoding too, to compare --decoder beam with")
    parser.add_argument("--report", type=Path, help="folder for the report: page, hypotheses, alignments, sclite files")
    parser.add_argument("--worst", type=nonnegative_int, default=20, help="utterances that the page shows and plays")
    parser.add_argument("--save_emissions", type=Path, help="file for CTC log-probabilities, to tune a language model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="e.g. cpu, cuda:1")
    parser.add_argument("--threads", type=positive_int, help="CPU threads; all cores by default")
    parser.add_argument("--config", help="YAML file of flags; the command line wins")
    _add_data_flags(parser.add_argument_group("data"))
    add_constructor_flags(parser, DecodingOptions, title="decoding", aliases={"beam_size": "beam_width"})
    return parser


def _add_data_flags(group) -> None:
    group.add_argument("--data_root", default="data", help="folder of the corpora")
    group.add_argument("--test_sets", nargs="+", default=["test-clean", "test-other"],
                       help="subsets, folders or manifests")
    group.add_argument("--limit", type=positive_int, help="utterances a split, spread over it, for a quick look")
    group.add_argument("--batch_size", type=positive_int, default=32, help="utterances a batch")
    group.add_argument("--batch_seconds", type=positive_float,
                       help="seconds of padded audio a batch; wins over --batch_size")
    group.add_argument("-w", "--num_workers", type=nonnegative_int, default=min(4, os.cpu_count() or 1),
                       help="processes that read audio")
    group.add_argument("--cache_dir", default=".cache/index", help="durations of audio files")
    group.add_argument("--librispeech_url", default=URL, help="where LibriSpeech's archives are")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags and the config file, the command line winning. Raises UsageError."""
    args = parse_with_config(build_parser(), sys.argv[1:] if argv is None else argv)
    args.checkpoint, args.test_sets = list(dict.fromkeys(args.checkpoint)), list(dict.fromkeys(args.test_sets))
    if args.compare_greedy and args.decoder == "greedy":
        raise UsageError("--compare_greedy: there is only greedy decoding to compare; add --decoder beam")
    if args.save_emissions and len(args.checkpoint) > 1:
        raise UsageError("--save_emissions: takes one --checkpoint")
    return args


def decodings(args: argparse.Namespace) -> dict[str, DecodingOptions]:
    """The ways of decoding, by a name for each. Raises UsageError."""
    try:
        options = DecodingOptions.from_flags(args)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.decoder == "greedy":
        return {"greedy": options}
    name = f"beam {options.beam_size}" + (f" + {Path(options.lm).name}" if options.lm else "")
    greedy = replace(options, decoder="greedy", lm=None, hotwords=[], nbest=1, beam_size=1)
    return {"greedy": greedy, name: options} if args.compare_greedy else {name: options}


def load_networks(args: argparse.Namespace) -> dict[str, tuple[list[str], Recognizer]]:
    """Paths of the weights and the network on the device, by short name. Raises UsageError or CheckpointError."""
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {args.device}: {str(error).splitlines()[0]}") from None
    loaded = {name: load_network(path, args.average, device) for name, path in short_names(args.checkpoint).items()}
    if len({network.tokenizer.characters for _, network in loaded.values()}) > 1:
        raise UsageError("--checkpoint: the networks have different alphabets, so they cannot be compared on the same "
                         "utterances; evaluate them one by one")
    return loaded


def load_network(path: str, average: int, device: torch.device) -> tuple[list[str], Recognizer]:
    """A checkpoint's network, or the mean of the best ones in its folder. Raises CheckpointError."""
    if average == 1:
        return [linked(path)], Recognizer.from_checkpoint(path, device)
    best = best_checkpoints(Path(path).parent, average)
    network, weights = Recognizer.from_checkpoint(best[0], device), average_checkpoints(best)
    network.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()
                             if name.startswith("network.")})
    print(f"weights: mean of {', '.join(map(str, best))}")
    return [str(one) for one in best], network


def linked(path: str) -> str:
    """The checkpoint beside it that `best.ckpt` is a link to; any other path as it is."""
    target = Path(path).with_name(Path(path).resolve().name)
    return str(target) if target.is_file() else path


def short_names(paths: list[str]) -> dict[str, str]:
    """Paths by the name of their run's folder and their own, or by the whole path where that is not unique."""
    names = []
    for path in map(Path, paths):
        folder = path.absolute().parent
        names.append(f"{(folder.parent if folder.name == 'checkpoints' else folder).name}/{path.stem}")
    counts = Counter(names)
    return {name if counts[name] == 1 else path: path for name, path in zip(names, paths, strict=True)}


def build_systems(args: argparse.Namespace, stack: ExitStack) -> list[System]:
    """Every network with every way of decoding, ready to be timed; `stack` closes the decoders.

    Raises UsageError, CheckpointError, LanguageModelError or ImportError, before any audio is read.
    """
    options = decodings(args)
    systems = []
    for checkpoint, (weights, network) in load_networks(args).items():
        for name, decoding in options.items():
            decoder = stack.enter_context(Decoder(decoding, network.tokenizer))
            name = f"{checkpoint} {name}" if len(args.checkpoint) > 1 else name
            systems.append(System(name, checkpoint, weights, network, decoder))
    for system in systems:
        warm_up(system, args)
    return systems


@torch.inference_mode()
def warm_up(system: System, args: argparse.Namespace) -> None:
    """Decodes a second of nothing, which loads what the search needs: a fault shows now, and no clock runs yet."""
    silence = torch.zeros(1, SAMPLE_RATE, device=args.device)
    encoding = system.network.encode(silence, torch.tensor([SAMPLE_RATE], device=args.device))
    system.network.search(encoding, system.decoder)
    if args.save_emissions and system.network.autoregressive:
        raise UsageError(f"--save_emissions: {args.checkpoint[0]} is an attention model; its texts come from no CTC")


def build_data(args: argparse.Namespace, network: Recognizer):
    """The data module of the flags, its indexes cut to --limit. Raises DataError."""
    from data.datamodule import LibriSpeechDataModule
    from utils.process import quiet_packages

    quiet_packages()
    options = TrainingDataOptions(**{one.name: getattr(args, one.name) for one in fields(DataOptions)},
                                  train_sets=[], val_sets=[])
    data = LibriSpeechDataModule(options, network.tokenizer)
    data.prepare_data()
    for index in data.indexes() if args.limit else []:
        step = max(1, len(index.utterances) // args.limit)
        index.utterances = index.utterances[::step][: args.limit]
    return data


def evaluate(args: argparse.Namespace, systems: list[System], data) -> tuple[list[Result], list[dict]]:
    """The results of every system on every split, and the emissions where they are to be saved."""
    from tqdm import tqdm

    results, emissions = [], []
    for name, loader in zip(args.test_sets, data.test_dataloader(), strict=True):
        heard = {system.name: Heard() for system in systems}
        for batch in tqdm(loader, desc=name, unit=" batches", leave=False, disable=not sys.stderr.isatty()):
            emissions += recognise(args, systems, batch, heard)
        utterances = data.index(name).utterances
        for system in systems:
            texts, seconds = heard[system.name].texts, heard[system.name].seconds
            outcomes = build_outcomes(utterances, [texts[utterance.id] for utterance in utterances])
            results.append(Result(system=system.name, split=name, outcomes=outcomes, compute_seconds=seconds,
                                  nbest=system.decoder.options.nbest))
    return results, emissions


@torch.inference_mode()
def recognise(args: argparse.Namespace, systems: list[System], batch: Batch, heard: dict[str, Heard]) -> list[dict]:
    """Adds every system's texts of a batch to `heard`; systems of one network share its output. Returns emissions."""
    emissions = []
    for _, sharing in groupby(systems, key=lambda system: system.checkpoint):
        sharing = list(sharing)
        network, started = sharing[0].network, time.perf_counter()
        encoding = network.encode(batch.waveforms.to(args.device), batch.sample_counts.to(args.device))
        encoding_seconds = seconds_since(started, args.device)
        for system in sharing:
            started = time.perf_counter()
            found = network.search(encoding, system.decoder)
            heard[system.name].seconds += encoding_seconds + seconds_since(started, args.device)
            heard[system.name].texts.update((name, [one.text for one in n_best])
                                            for name, n_best in zip(batch.ids, found, strict=True))
        if args.save_emissions:
            emissions += emissions_of(batch, *network.ctc_log_probs(encoding))
    return emissions


def seconds_since(started: float, device: str) -> float:
    """Wall-clock time, when the device is done with what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def emissions_of(batch: Batch, log_probs: Tensor, lengths: Tensor) -> list[dict]:
    """Each utterance's (T, C) CTC log-probabilities, without padding, on the CPU."""
    return [{"id": name, "text": text, "log_probs": one[:length].float().cpu().clone()}
            for name, text, one, length in zip(batch.ids, batch.texts, log_probs, lengths.tolist(), strict=True)]


def save_emissions(path: Path, network: Recognizer, emissions: list[dict]) -> None:
    """Beside and then into place. Raises OSError."""
    content = io.BytesIO()
    torch.save({"tokenizer": network.tokenizer.config, "seconds_per_frame": network.ctc_frame_samples / SAMPLE_RATE,
                "utterances": emissions}, content)
    atomic_write(path, content.getbuffer())
    print(f"emissions: {path}")


def describe(args: argparse.Namespace, systems: list[System]) -> dict:
    """What was measured and how, as plain values."""
    return {"code": git_revision(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "device": args.device,
            "data_root": args.data_root, "test_sets": args.test_sets, "limit": args.limit,
            "systems": [{"name": system.name, "weights": system.weights, "decoding": asdict(system.decoder.options)}
                        for system in systems]}


def write_report(args: argparse.Namespace, systems: list[System], results: list[Result], data) -> None:
    """All files of the report. Raises OSError or AudioError."""
    networks = {system.checkpoint: system.network for system in systems}
    worst = [(row, exhibit(networks, row[0][1])) for row in worst_utterances(results, args.worst)]
    about, left_out = describe(args, systems), [str(index) for index in data.indexes()]
    page = build_page(about=about, results=results, notes=left_out, worst=worst)
    write_files(args.report, {**report_files(results, {**about, "data": left_out}), "report.html": page})
    print(f"report: {args.report / 'report.html'}")


def prepare_outputs(args: argparse.Namespace) -> None:
    """The folders to write to, before the work begins. Raises UsageError or OSError."""
    for folder in (args.report, args.save_emissions and args.save_emissions.parent):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise UsageError(f"{folder}: cannot be written (permission denied)")
    if args.save_emissions and args.save_emissions.is_dir():
        raise UsageError(f"--save_emissions {args.save_emissions}: is a folder; name a file")


def run(args: argparse.Namespace) -> list[Result]:
    """A whole evaluation. Returns the results, the first system's of each split first."""
    prepare_outputs(args)
    with ExitStack() as stack:
        systems = build_systems(args, stack)
        data = build_data(args, systems[0].network)
        results, emissions = evaluate(args, systems, data)
        print(f"\n{table(results)}\n", flush=True)
        if args.save_emissions:
            save_emissions(args.save_emissions, systems[0].network, emissions)
        if args.report:
            write_report(args, systems, results, data)
    return results


def main(argv: list[str] | None = None) -> None:
    """Leaves with status 2 and one line where something that was given is wrong."""
    with one_line_errors("evaluate.py", less_memory="a smaller --batch_seconds or --batch_size needs less"):
        args = parse_arguments(argv)
        if args.threads:
            torch.set_num_threads(args.threads)
        run(args)


if __name__ == "__main__":
    main()
