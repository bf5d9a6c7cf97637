"""An n-gram from text: sentences, Kneser-Ney estimation, entropy pruning, an ARPA file and a KenLM binary."""

import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from utils.cli.parser import UsageError
from utils.files.compressed import LARGEST_READ, BoundedReader
from utils.lm.ngram import ORDERS, PACKED_TIMES, SPACE, SYMBOLS, LanguageModelError, arpa_lines, opened, read_words
from utils.tokenizer import CharTokenizer, normalize

FALLBACK_DISCOUNT = 0.5  # where counts of counts give none; as lmplz has it for n-grams seen once
OUTPUTS = (".arpa", ".arpa.gz")


@dataclass
class TextCounts:
    """What a text is made of; its units are words or characters."""

    sentences: int = 0
    units: int = 0
    known: set[str] = field(default_factory=set)  # that the alphabet can spell
    foreign: Counter = field(default_factory=Counter)


def read_sentences(arguments: list[str]) -> Iterator[str]:
    """The normalised sentences of plain text, `*.trans.txt`, manifests (`*.jsonl`) and folders of transcripts.

    Any of them may be packed by gzip. Words that an n-gram has for symbols, as `<s>`, are dropped, and
    so are empty lines. Raises UsageError that names the file.
    """
    for path in find_texts(arguments):
        for number, line in enumerate(_lines(path), start=1):
            words = normalize(_text(path, number, line)).split()
            if words := [word for word in words if word not in (SPACE, *SYMBOLS)]:
                yield " ".join(words)


def find_texts(arguments: list[str]) -> list[Path]:
    """Files as they are given, and the transcripts in folders, sorted. Raises UsageError."""
    paths = []
    for path in map(Path, arguments):
        if path.is_dir():
            found = sorted([*path.rglob("*.trans.txt"), *path.rglob("*.trans.txt.gz")])
            if not found:
                raise UsageError(f"--text {path}: no *.trans.txt in this folder; name its files")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise UsageError(f"--text {path}: no such file or folder")
    return paths


def _lines(path: Path) -> Iterator[str]:
    try:
        with BoundedReader(path, times=PACKED_TIMES) as packed, io.TextIOWrapper(packed, "utf-8-sig") as file:
            yield from iter(partial(file.readline, LARGEST_READ), "")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UsageError(f"--text {path}: cannot be read as text ({error})") from None


def _text(path: Path, number: int, line: str) -> str:
    """The text in a line, which the file's name tells how to find."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".trans.txt"):
        return line.strip().partition(" ")[2]
    if not name.endswith((".jsonl", ".json")) or not line.strip():
        return line
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise UsageError(f"--text {path}: line {number} is no JSON object with a 'text'")
    return text


def build(args) -> None:
    """Writes `args.output` and, where KenLM's programs are installed, its binary and word list beside it.

    Files appear when they are whole. Raises UsageError and LanguageModelError.
    """
    output, tokenizer = args.output, CharTokenizer(alphabet=args.alphabet)
    if not output.name.endswith(OUTPUTS) or output.is_dir():
        raise UsageError(f"--output {output}: must be a file that ends in {' or '.join(OUTPUTS)}")
    if args.order not in ORDERS:
        raise UsageError(f"--order {args.order}: KenLM reads orders {ORDERS.start} to {ORDERS.stop - 1}")
    find_texts(args.text)  # before anything is made
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        text, arpa = Path(folder, "text"), Path(folder, "model.arpa")
        counts = write_units(args.text, text, args.unit, tokenizer)
        check_text(args, counts)
        trainer = train(text, args.order, arpa)
        if args.prune:
            prune(arpa, args.prune)
        ngrams = ngram_counts(arpa)
        install(arpa, output)
    print(f"{output}: {counts.sentences:,} sentences, {counts.units:,} {args.unit}s, "
          f"{len(counts.known) + len(counts.foreign):,} different, by {trainer}")
    print(summary(ngrams, output))


def write_units(arguments: list[str], target: Path, unit: str, tokenizer: CharTokenizer) -> TextCounts:
    """One sentence a line, its words or characters apart by spaces."""
    counts = TextCounts()
    with open(target, "w", encoding="utf-8") as file:
        for sentence in read_sentences(arguments):
            units = [SPACE if c == " " else c for c in sentence] if unit == "char" else sentence.split()
            file.write(" ".join(units) + "\n")
            counts.sentences += 1
            counts.units += len(units)
            for one in units:
                if one not in counts.known:
                    known = one == SPACE or not tokenizer.unknown(one)
                    counts.known.add(one) if known else counts.foreign.update([one])
    return counts


def check_text(args, counts: TextCounts) -> None:
    """Says what the alphabet cannot spell. Raises UsageError where that is most of the text, or there is none."""
    name = ' '.join(args.text)
    if not counts.sentences:
        raise UsageError(f"--text {name}: not one sentence in it")
    often = " ".join(one for one, _ in counts.foreign.most_common(5))
    kinds = f"{len(counts.foreign):,} of {len(counts.foreign) + len(counts.known):,} different {args.unit}s"
    if len(counts.foreign) > len(counts.known):
        raise UsageError(f"--text {name}: {kinds} are outside the alphabet ({often}): strip punctuation and write out "
                         f"numbers, or give --alphabet")
    if counts.foreign:
        print(f"{kinds} are outside the alphabet, {counts.foreign.total():,} in the text: {often}", file=sys.stderr)


def train(text: Path, order: int, arpa: Path) -> str:
    """An ARPA file of lines of units. Returns the name of what estimated it: `lmplz`, or else kaldingram."""
    if shutil.which("lmplz"):
        _train_lmplz(text, order, arpa)
        return "lmplz"
    _train_kaldingram(text, order, arpa)
    return "kaldingram"


def _train_lmplz(text: Path, order: int, arpa: Path) -> None:
    command = ["lmplz", "--order", str(order), "--discount_fallback", "--temp_prefix", f"{arpa.parent}/"]
    with open(text, "rb") as source, open(arpa, "wb") as target:
        said = _run(command, stdin=source, stdout=target)
    for line in said:
        if "fallback" in line.lower():
            print(f"lmplz: {line.strip()}", file=sys.stderr)


def _run(command: list[str], **streams) -> list[str]:
    """What a program of KenLM says. Raises UsageError with its last line where it fails."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", **streams)
    lines = done.stderr.strip().splitlines() or ["it said nothing"]
    if done.returncode:
        raise UsageError(f"{command[0]} failed with status {done.returncode}: {lines[-1]}")
    return lines


def _train_kaldingram(text: Path, order: int, arpa: Path) -> None:
    """Back-off Kneser-Ney with one discount an order (Chen & Goodman 1998, section 2.7).

    Unigrams are interpolated with the uniform distribution over the vocabulary and `<unk>`, as lmplz does:
    kaldingram leaves no probability to unknown words, and KenLM would then forbid them. Everything is
    held in memory: up to 1.3 GB and 25 seconds for a million words; lmplz needs neither.
    """
    counting = _kaldingram("train").NgramCounts(order)
    with progress():
        with open(text, encoding="utf-8") as file:
            for line in file:
                counting.add_raw_counts_from_line(line.strip())
        discounts = [_discount(histories) for histories in counting.counts]
        counting.d = [discount or FALLBACK_DISCOUNT for discount in discounts]
        counting.cal_f()
        _add_unknown(counting.counts[0][()])
        counting.cal_bow()
        with open(arpa, "w", encoding="utf-8") as file:
            counting.print_as_arpa(file)
    if orders := [str(order) for order, discount in enumerate(discounts, start=1) if discount is None]:
        print(f"order {', '.join(orders)}: too few n-grams seen once or twice for a Kneser-Ney discount; "
              f"{FALLBACK_DISCOUNT} in its place", file=sys.stderr)


def _kaldingram(module: str):
    try:
        return __import__(f"kaldingram.{module}", fromlist=[module])
    except ImportError:
        raise UsageError("neither lmplz nor kaldingram is installed: pip install kaldingram") from None


def _discount(histories: dict) -> float | None:
    """D = n1 / (n1 + 2 n2) of the n-grams of one order, n_k of which were seen k times.

    Below the highest order an n-gram counts as often as different words stood before it.
    """
    seen = Counter(len(history.word_to_context.get(word, ())) or count for history in histories.values()
                   for word, count in history.word_to_count.items())
    return seen[1] / (seen[1] + 2 * seen[2]) if seen[1] and seen[2] else None


def _add_unknown(unigrams) -> None:
    """Shares what the discount left among all words (not `<s>`, which is never predicted) and `<unk>`."""
    unigrams.word_to_f["<unk>"], unigrams.word_to_count["<unk>"] = 0.0, 0
    left = 1 - sum(unigrams.word_to_f.values())
    for word in unigrams.word_to_f:
        if word != "<s>":
            unigrams.word_to_f[word] += left / (len(unigrams.word_to_f) - 1)


def prune(arpa: Path, threshold: float) -> None:
    """Drops n-grams that change the model's perplexity by less than this share (Stolcke 1998), never a word.

    Raises UsageError where none of the highest order is left.
    """
    kaldingram = _kaldingram("prune")
    parser = kaldingram.ArpaParser()
    with progress():
        model = parser.loadf(str(arpa), encoding="utf-8")[0]
        try:
            kaldingram.prune(model, threshold, minorder=2)
        except ValueError as error:  # the logarithm of a rounded probability below 0
            raise UsageError(f"--prune {threshold}: failed ({error}); give a smaller threshold") from None
        parser.dumpf(model, str(arpa), encoding="utf-8")
    try:
        ngram_counts(arpa)
    except LanguageModelError:
        raise UsageError(f"--prune {threshold}: leaves no n-grams of the highest order; give a smaller threshold, "
                         f"or a lower --order") from None


@contextlib.contextmanager
def progress() -> Iterator[None]:
    """Lets progress bars through to a terminal only."""
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
        yield


def install(arpa: Path, output: Path) -> None:
    """Moves an ARPA file to its name, packed where that ends in .gz, and its binary beside it."""
    binary = write_binary(arpa)
    if output.suffix == ".gz":
        packed = arpa.with_name("packed")
        with open(arpa, "rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        arpa = packed
    os.replace(arpa, output)
    for suffix in (".words", ".binary"):
        if binary:
            os.replace(binary.with_suffix(suffix), beside(output, suffix))
        else:
            beside(output, suffix).unlink(missing_ok=True)  # of an earlier model: it would be taken for this one's


def beside(output: Path, suffix: str) -> Path:
    """`NAME` with another suffix, for an output `NAME.arpa` or `NAME.arpa.gz`."""
    return output.with_name(output.name.removesuffix(".gz").removesuffix(".arpa") + suffix)


def write_binary(arpa: Path) -> Path | None:
    """`NAME.binary` and `NAME.words`, its list of words, beside an ARPA file; None without `build_binary`."""
    if not shutil.which("build_binary"):
        return None
    binary = arpa.with_suffix(".binary")
    _run(["build_binary", str(arpa), str(binary)], stdout=subprocess.DEVNULL)
    binary.with_suffix(".words").write_text("\n".join(read_words(arpa)) + "\n", encoding="utf-8")
    return binary


def ngram_counts(arpa: Path) -> list[int]:
    """N-grams of each order of a whole ARPA file. Raises LanguageModelError where it is not whole."""
    counts = Counter()
    with opened(arpa) as file:
        for order, line in arpa_lines(arpa, file):
            counts[order] += not line.startswith(b"\\") and not line.isspace()
    return [counts[order] for order in range(1, max(counts))]


def summary(counts: list[int], output: Path) -> str:
    """One line: n-grams by order, size of the file, and its binary."""
    orders = ", ".join(f"{order}-grams {count:,}" for order, count in enumerate(counts, start=1))
    binary = beside(output, ".binary")
    faster = f"; {binary} is the same and loads faster" if binary.is_file() else ""
    return f"{orders}; {output.stat().st_size / 1e6:,.1f} MB{faster}"
