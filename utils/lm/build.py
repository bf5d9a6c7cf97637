"""An n-gram from text: sentences, Kneser-Ney estimation, entropy pruning, an ARPA file and a KenLM binary."""

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from utils.errors import UsageError
from utils.lm.kneser_ney import BEGIN, FALLBACK_DISCOUNT, UNKNOWN, BackoffModel, Corpus, number_words
from utils.lm.ngram import ORDERS, SPACE, arpa_lines, open_model, read_words
from utils.lm.text import find_texts, read_sentences
from utils.tokenizer import CharTokenizer

OUTPUTS = (".arpa", ".arpa.gz")


def build(args) -> None:
    """Writes `args.output` and, where KenLM's programs are installed, its binary and word list next to it.

    Files appear when they are complete. Raises UsageError, LanguageModelError and OSError.
    """
    output, tokenizer = args.output, CharTokenizer(alphabet=args.alphabet)
    if not output.name.endswith(OUTPUTS) or output.is_dir():
        raise UsageError(f"--output {output}: must be a file that ends in {' or '.join(OUTPUTS)}")
    if args.order not in ORDERS:
        raise UsageError(f"--order {args.order}: KenLM reads orders {ORDERS.start} to {ORDERS.stop - 1}")
    find_texts(args.text)  # refuses a wrong name before the work
    with staging_folder(output) as folder:
        sentences = tqdm(read_sentences(args.text, tokenizer), desc="reading", unit=" sentences", disable=None)
        corpus = number_words(split_units(sentences, args.unit))
        words = check_text(args, corpus, tokenizer)
        model = estimate(corpus, args.order, args.prune)
        model.write(folder / "model.arpa")
        install(folder / "model.arpa", output)
    print(f"{output}: {corpus.counts[BEGIN]:,} sentences, {words.total():,} {args.unit}s, {len(words):,} different")
    print(summary(model.sizes, output))


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """Makes a temporary folder next to an output file, whose name is that of errors in writing there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            yield Path(folder)
    except OSError as error:
        error.filename, error.filename2 = str(output), None
        raise


def split_units(sentences: Iterable[str], unit: str) -> Iterator[list[str]]:
    """Yields the units of each sentence: its words, or its characters with `<space>`."""
    for sentence in sentences:
        yield sentence.split() if unit == "word" else [SPACE if char == " " else char for char in sentence]


def check_text(args, corpus: Corpus, tokenizer: CharTokenizer) -> Counter:
    """Returns how often each unit occurs, and reports what the alphabet lacks.

    Raises UsageError where that is most of the text, or there is no text.
    """
    name, counts = " ".join(args.text), Counter(dict(zip(corpus.words, corpus.counts.tolist(), strict=True)))
    for symbol in corpus.words[: UNKNOWN + 1]:
        del counts[symbol]
    if not counts:
        raise UsageError(f"--text {name}: not one sentence in it")
    foreign = Counter({unit: count for unit, count in counts.items() if unit != SPACE and tokenizer.unknown(unit)})
    often = " ".join(unit for unit, _ in foreign.most_common(5))
    kinds = f"{len(foreign):,} of {len(counts):,} different {args.unit}s"
    if len(foreign) * 2 > len(counts):
        raise UsageError(f"--text {name}: {kinds} are outside the alphabet ({often}): give --alphabet")
    if foreign:
        print(f"{kinds} are outside the alphabet, {foreign.total():,} in the text: {often}", file=sys.stderr)
    return counts


def estimate(corpus: Corpus, order: int, threshold: float) -> BackoffModel:
    """Returns a model of the text, pruned where the threshold is above 0.

    Raises UsageError where no n-grams of the highest order are left.
    """
    model = BackoffModel(corpus, order)
    if model.fallbacks:
        print(f"order {', '.join(map(str, model.fallbacks))}: too few n-grams seen once or twice for a Kneser-Ney "
              f"discount; {FALLBACK_DISCOUNT} in its place", file=sys.stderr)
    if threshold:
        model.prune(threshold)
    if not model.sizes[-1]:
        raise UsageError(f"--order {order} --prune {threshold}: leaves no n-grams of the highest order; give a smaller "
                         f"threshold, or a lower --order")
    return model


def install(arpa: Path, output: Path) -> None:
    """Moves an ARPA file to its name, packed where that ends in .gz, and its binary next to it."""
    binary = write_binary(arpa)
    if output.suffix == ".gz":
        packed = arpa.with_name("packed")
        with open(arpa, "rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        arpa = packed
    os.replace(arpa, output)
    for suffix in (".words", ".binary"):
        if binary:
            os.replace(binary.with_suffix(suffix), sibling(output, suffix))
        else:
            sibling(output, suffix).unlink(missing_ok=True)  # of an earlier model: it would be taken for this one's


def sibling(output: Path, suffix: str) -> Path:
    """Returns `NAME` with another suffix, for an output `NAME.arpa` or `NAME.arpa.gz`."""
    return output.with_name(output.name.removesuffix(".gz").removesuffix(".arpa") + suffix)


def write_binary(arpa: Path) -> Path | None:
    """Writes `NAME.binary` and `NAME.words`, its list of words, next to an ARPA file; None without `build_binary`.

    Raises UsageError where KenLM's program fails.
    """
    if not shutil.which("build_binary"):
        return None
    binary = arpa.with_suffix(".binary")
    done = subprocess.run(["build_binary", str(arpa), str(binary)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True, errors="replace")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UsageError(f"KenLM's build_binary failed with status {done.returncode}: {reason}")
    binary.with_suffix(".words").write_text("\n".join(read_words(arpa)) + "\n", encoding="utf-8")
    return binary


def ngram_counts(arpa: Path) -> list[int]:
    """Returns the number of n-grams of each order of an ARPA file. Raises LanguageModelError for a damaged one."""
    counts = Counter()
    with open_model(arpa) as file:
        for order, line in arpa_lines(arpa, file):
            counts[order] += not line.startswith(b"\\") and not line.isspace()
    return [counts[order] for order in range(1, max(counts))]


def summary(counts: list[int], output: Path) -> str:
    """Returns one line: n-grams by order, size of the file, and its binary."""
    orders = ", ".join(f"{order}-grams {count:,}" for order, count in enumerate(counts, start=1))
    binary = sibling(output, ".binary")
    faster = f"; {binary} is the same and loads faster" if binary.is_file() else ""
    return f"{orders}; {output.stat().st_size / 1e6:,.1f} MB{faster}"
