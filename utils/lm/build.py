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

from utils.errors import UsageError
from utils.files.folders import remove_abandoned
from utils.lm.kneser_ney import FALLBACK_DISCOUNT, BackoffModel, Corpus
from utils.lm.ngram import SPACE, arpa_lines, open_model, read_words

OUTPUTS = (".arpa", ".arpa.gz")


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """Makes a temporary folder next to an output file, whose name is that of errors in writing there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{output.name}."
    remove_abandoned(output.parent, prefix)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=prefix) as folder:
            yield Path(folder)
    except OSError as error:
        error.filename, error.filename2 = str(output), None
        raise


def split_units(sentences: Iterable[str], unit: str) -> Iterator[list[str]]:
    """Yields the units of each sentence: its words, or its characters with `<space>`."""
    for sentence in sentences:
        yield sentence.split() if unit == "word" else [SPACE if char == " " else char for char in sentence]


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
    for suffix in (".words", ".binary"):
        sibling(output, suffix).unlink(missing_ok=True)  # of an earlier model: it would be taken for this one's
    if output.suffix == ".gz":
        packed = arpa.with_name("packed")
        with open(arpa, "rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        arpa = packed
    os.replace(arpa, output)
    for suffix in (".words", ".binary") if binary else ():
        os.replace(binary.with_suffix(suffix), sibling(output, suffix))


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
