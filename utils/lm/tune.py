"""The weights of an n-gram in CTC beam search, by a search over log-probabilities that were computed once.

A decoder is built for each pair of weights (about 40) and loads the n-gram anew. An ARPA file takes
about half a second for a million n-grams each time; a KenLM binary, which `build` and `download` write
where `build_binary` is installed, is mapped in milliseconds.
"""

import math
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import torch
import yaml
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from utils.checkpoint.validation import load_untrusted
from utils.cli.parser import UsageError
from utils.decoding.options import Decoder, DecodingOptions
from utils.lm.ngram import SPACE, LanguageModelError, check_words, decompressed, load_kenlm, quiet_stderr, read_words
from utils.metrics import ErrorCounts, count_errors
from utils.tokenizer import Tokenizer, build_tokenizer

EVALUATE = Path(__file__).resolve().parents[2] / "evaluate.py"
BATCH = 256  # utterances decoded in one call, one thread each

Point = tuple[float, float]  # alpha, the weight of the n-gram, and beta, the bonus for a word


class Emissions(NamedTuple):
    """CTC log-probabilities of a validation set."""

    tokenizer: Tokenizer
    texts: list[str]  # references, normalised
    log_probs: list[Tensor]  # (T, C) float32 each


def tune(args) -> None:
    """Writes `args.output`, flags for `evaluate.py --config`, and a figure. Raises UsageError, LanguageModelError."""
    check_arguments(args)
    words = list_words(args.lm)
    with _emissions_file(args) as path:
        emissions = read_emissions(path)
    if words is not None:
        check_words(args.lm, words, emissions.tokenizer)
    with decompressed(args.lm) as plain, tqdm(desc="decoding dev", unit=" points", disable=None) as bar:
        base = DecodingOptions(decoder="beam", beam_size=args.beam_size, decoder_backend=args.decoder_backend)
        greedy, without = (decode(emissions, one) for one in (DecodingOptions(), base))

        def measure(point: Point) -> ErrorCounts:
            counts = decode(emissions, replace(base, lm=plain, alpha=point[0], beta=point[1]))
            bar.update()
            bar.set_postfix_str(f"alpha {point[0]:g} beta {point[1]:g} WER {counts.wer:.2%}")
            return counts

        surface = search(measure, args.alphas, args.betas, args.rounds)
    best = min(surface, key=lambda point: rank(point, surface[point]))
    summary = (f"val WER {surface[best].wer:.2%} (greedy {greedy.wer:.2%}, beam search without an n-gram "
               f"{without.wer:.2%}), CER {surface[best].cer:.2%}, {surface[best].utterances:,} utterances")
    write(args, best, surface, summary)
    if surface[best].word_errors >= without.word_errors:
        print(f"{args.lm}: no weights make it better than none; is its text like that of the validation sets?",
              file=sys.stderr)
    print(f"{args.output}: alpha {best[0]:g}, beta {best[1]:g} of {len(surface)} points; {summary}")


def check_arguments(args) -> None:
    """Raises UsageError for what can be known before anything is computed."""
    if args.output.suffix not in (".yaml", ".yml") or args.output.is_dir():
        raise UsageError(f"--output {args.output}: must be a file that ends in .yaml")
    if not all(map(math.isfinite, args.betas)):
        raise UsageError("--betas must be finite")
    for flag in ("checkpoint", "emissions", "lm"):
        if (path := getattr(args, flag)) and not Path(path).is_file():
            raise UsageError(f"--{flag} {path}: no such file")


def list_words(path: str) -> list[str] | None:
    """Those of an n-gram, None where nothing lists them. Raises LanguageModelError for one over characters."""
    words = read_words(path)
    if SPACE in (load_kenlm(path) if words is None else words):
        raise LanguageModelError(path, "is an n-gram over characters, which CTC beam search cannot use; build one "
                                       "with --unit word")
    if words is None:
        print(f"{path}: without {Path(path).with_suffix('.words')} its words are unknown to the search",
              file=sys.stderr)
    return words


@contextmanager
def _emissions_file(args) -> Iterator[Path]:
    """That of `--emissions`, or a temporary one that evaluate.py writes from `--checkpoint`."""
    if args.emissions:
        yield args.emissions
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "emissions.pt")
        command = [sys.executable, str(EVALUATE), "--checkpoint", args.checkpoint, "--test_sets", *args.val_sets,
                   "--data_root", args.data_root, "--save_emissions", str(path)]
        stderr = None if sys.stderr.isatty() else subprocess.PIPE  # a terminal shows its progress
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=stderr, text=True, errors="replace")
        if done.returncode or not path.is_file():
            said = (done.stderr or "").strip().splitlines() or [f"evaluate.py ended with status {done.returncode}"]
            raise UsageError(said[-1].replace("evaluate.py: error: ", "").replace("--test_sets", "--val_sets"))
        yield path


def read_emissions(path: Path) -> Emissions:
    """What `evaluate.py --save_emissions` wrote, or anything of its form. Raises UsageError."""
    try:
        saved = load_untrusted(path)
        tokenizer = build_tokenizer(**saved["tokenizer"])
        texts = [one["text"] for one in saved["utterances"]]
        log_probs = [one["log_probs"].float() for one in saved["utterances"]]
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, BadZipFile, ValueError, KeyError, TypeError,
            AttributeError, IndexError) as error:
        raise UsageError(f"--emissions {path}: not what evaluate.py --save_emissions writes "
                         f"({type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]})") from None
    if not any(texts):
        raise UsageError(f"--emissions {path}: has no utterance with a text")
    for text, one in zip(texts, log_probs, strict=True):
        if one.ndim != 2 or one.shape[1] != tokenizer.ctc_size or not len(one) or one.isnan().any():
            raise UsageError(f"--emissions {path}: {text[:40]!r} must have (T, {tokenizer.ctc_size}) log-probabilities")
    return Emissions(tokenizer, texts, log_probs)


def decode(emissions: Emissions, options: DecodingOptions) -> ErrorCounts:
    """The errors with one set of options, all cores at work."""
    order = sorted(range(len(emissions.texts)), key=lambda i: len(emissions.log_probs[i]))
    hypotheses = {}
    with Decoder(options, emissions.tokenizer) as decoder:
        if options.decoder == "beam":
            with quiet_stderr():  # KenLM draws a bar each time
                decoder.ctc_beam  # noqa: B018 (loads it)
        for chunk in (order[i : i + BATCH] for i in range(0, len(order), BATCH)):
            log_probs = [emissions.log_probs[i] for i in chunk]
            found = decoder.search_ctc(pad_sequence(log_probs, batch_first=True), torch.tensor([*map(len, log_probs)]))
            hypotheses.update({i: best[0].text for i, best in zip(chunk, found, strict=True)})
    return count_errors(emissions.texts, [hypotheses[i] for i in range(len(order))])


def search(measure: Callable[[Point], ErrorCounts], alphas: list[float], betas: list[float],
           rounds: int) -> dict[Point, ErrorCounts]:
    """A grid, then around the best point with half the spacing, as often as `rounds` says.

    Each round goes on while a neighbour is better, so the best may leave the grid (pattern search,
    Hooke & Jeeves 1961). Returns what was measured at every point tried.
    """
    surface = {point: measure(point) for point in product(alphas, betas)}
    steps = _spacing(alphas), _spacing(betas)
    for _ in range(rounds):
        steps = steps[0] / 2, steps[1] / 2
        centre = None
        while centre != (centre := min(surface, key=lambda point: rank(point, surface[point]))):
            for point in _neighbours(centre, steps):
                if point not in surface:
                    surface[point] = measure(point)
    return surface


def rank(point: Point, counts: ErrorCounts) -> tuple:
    """The smaller the better: WER, then CER, then the smaller weights."""
    return counts.word_errors, counts.char_errors, point[0], abs(point[1]), point[1]


def _spacing(values: list[float]) -> float:
    """The smallest distance between values; 0 of a single one, which then stays."""
    ordered = sorted(set(values))
    return min((b - a for a, b in zip(ordered, ordered[1:], strict=False)), default=0.0)


def _neighbours(centre: Point, steps: Point) -> list[Point]:
    points = [(round(centre[0] + a * steps[0], 6), round(centre[1] + b * steps[1], 6))
              for a, b in product((-1, 0, 1), repeat=2)]
    return [point for point in points if point[0] >= 0]


def write(args, best: Point, surface: dict[Point, ErrorCounts], summary: str) -> None:
    """The YAML file and the figure beside it, each put in place when it is whole."""
    from utils.report.plots import surface_figure

    flags = {"decoder": "beam", "lm": str(args.lm), "alpha": best[0], "beta": best[1], "beam_size": args.beam_size}
    if args.decoder_backend != "native":
        flags["decoder_backend"] = args.decoder_backend
    args.output.parent.mkdir(parents=True, exist_ok=True)
    picture, part = args.output.with_suffix(".png"), args.output.with_name(f".{args.output.name}.part")
    title = f"val WER (%) by the weights of {Path(args.lm).name}"
    figure = surface_figure({point: counts.wer for point, counts in surface.items()}, best, title)
    figure.savefig(part, format="png", dpi=100)
    part.replace(picture)
    part.write_text(f"# {summary}\n# {args.command_line}\n{yaml.safe_dump(flags, sort_keys=False)}", encoding="utf-8")
    part.replace(args.output)
