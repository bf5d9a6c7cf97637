"""N-gram language models (KenLM): load, check and score."""

import math
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError, printable
from utils.files.compressed import BoundedReader
from utils.tokenizer import Tokenizer

if TYPE_CHECKING:
    import kenlm

SPACE = "<space>"  # the word that stands for a space in an n-gram over characters
SYMBOLS = ("<s>", "</s>", "<unk>", "<UNK>")
LN10 = math.log(10)  # KenLM's logarithms are to base 10
ORDERS = range(2, 7)  # for which KenLM's Python module and the CTC decoder are built
PACKED_TIMES = 100  # most bytes unpacked per byte of a .gz file; text packs 3 to 30 fold
COUNT_LINE = re.compile(rb"ngram\s+(\d+)\s*=\s*(\d{1,15})")  # in an ARPA file's header
KENLM_BINARY = b"mmap lm http://kheafield.com/code"  # first bytes of a KenLM binary file
MISSING = "KenLM is not installed: pip install ufal-kenlm"


class LanguageModelError(UserError):
    """A language model that cannot be used; the message is one line and begins with its path."""

    def __init__(self, path, reason: str):
        super().__init__(f"{path}: {reason}")


class NGram:
    """Scores texts by a KenLM n-gram over words, or over characters where it knows the word `<space>`.

    Args:
        path: ARPA or KenLM binary file, either may be packed by gzip.
        tokenizer: the network's, which must be able to write most words of the n-gram.

    Raises LanguageModelError.
    """

    def __init__(self, path, tokenizer: Tokenizer):
        self.path, self.tokenizer = Path(path), tokenizer
        self.words = read_words(self.path)  # before KenLM, which may crash on what this refuses
        self.model = load_kenlm(self.path)
        self.over_characters = SPACE in self.model
        if self.words is not None:
            self.words = check_words(self.path, self.words, tokenizer)

    def units(self, text: str) -> list[str]:
        """Returns what the n-gram predicts one by one: words, or characters with `<space>`."""
        return [SPACE if char == " " else char for char in text] if self.over_characters else text.split()

    def log_prob(self, text: str) -> float:
        """Returns natural log P(text and its end)."""
        return LN10 * self.model.score(" ".join(self.units(text)), bos=True, eos=True)


def load_kenlm(path) -> "kenlm.Model":
    """Returns the `kenlm.Model` of a file. Raises LanguageModelError."""
    try:
        import kenlm
    except ImportError:
        raise LanguageModelError(path, MISSING) from None
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    with decompressed(path) as plain:
        try:
            return kenlm.Model(plain, config)
        except (OSError, RuntimeError, ValueError) as error:
            raise LanguageModelError(path, f"KenLM cannot load it ({printable(error)})") from None


@contextmanager
def open_model(path) -> Iterator[BoundedReader]:
    """Opens a file, unpacked where it is packed by gzip. Raises LanguageModelError, also while it is read."""
    path = Path(path)
    if not path.is_file():
        raise LanguageModelError(path, "no such language model")
    try:
        with BoundedReader(path, times=PACKED_TIMES) as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise LanguageModelError(path, f"cannot be read ({error})") from None


@contextmanager
def decompressed(path) -> Iterator[str]:
    """Gives the path of a plain file: one that is packed by gzip is unpacked into a temporary folder.

    The list of a binary's words is next to it there as well.
    Raises LanguageModelError, also where an ARPA file's header states more n-grams than its size allows: KenLM
    allocates the memory for them before it reads them.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, f"model{Path(path).with_suffix('').suffix}")
        with open_model(path) as file:
            if packed := file.compressed:
                with open(plain, "wb") as target:
                    shutil.copyfileobj(file, target, 1 << 20)
                word_list(plain).symlink_to(word_list(path).absolute())
        name = str(plain if packed else path)
        _check_counts(path, name)
        yield name


def _check_counts(path, plain: str) -> None:
    with open(plain, "rb") as file:
        if file.read(len(KENLM_BINARY)) == KENLM_BINARY:
            return
        file.seek(0)
        header = takewhile(lambda line: line.strip() != b"\\1-grams:", file)
        counts = [int(match[2]) for line in header if (match := COUNT_LINE.fullmatch(line.strip()))]
    least = sum(count * (2 * order + 2) for order, count in enumerate(counts, start=1))  # bytes: `0\ta b\n`
    if least > os.path.getsize(plain):
        raise LanguageModelError(path, f"damaged: its header says {max(counts):,} n-grams, too many for its size")


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drops what is written to standard error, by C++ too: KenLM draws a bar each time that it loads a file."""
    original = os.dup(2)
    with open(os.devnull, "w") as sink, redirect_stderr(sink):
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)


def arpa_lines(path, lines: Iterable[bytes]) -> Generator[tuple[int, bytes], None, None]:
    """Yields the lines of an ARPA file, each with the order of its n-grams (0 in the header).

    Raises LanguageModelError where the file is cut off or its header is wrong, such as a negative count, on which
    KenLM crashes.
    """
    lines = iter(lines)
    counts = yield from _arpa_header(path, lines)
    for order, count in enumerate(counts, start=1):
        found, heading = 0, b""  # of the next section
        for line in lines:
            if line.startswith(b"\\"):
                heading = line
                break
            found += not line.isspace()
            yield order, line
        if not heading:
            raise LanguageModelError(path, f"cut off: it ends within its {order}-grams")
        expected = b"\\%d-grams:" % (order + 1) if order < len(counts) else b"\\end\\"
        if found != count or heading.strip() != expected:
            raise LanguageModelError(path, f"damaged: {found:,} {order}-grams, its header says {count:,}")
        yield order + 1, heading
    for line in lines:  # to the end, where a .gz file has its checksum
        if not line.isspace():
            raise LanguageModelError(path, f"damaged: {line[:40].decode('utf-8', 'replace')!r} after its end")
        yield len(counts) + 1, line


def _arpa_header(path, lines: Iterator[bytes]) -> Generator[tuple[int, bytes], None, list[int]]:
    counts, begun = [], False
    for line in lines:
        text = line.strip()
        if text and not begun:
            if text != b"\\data\\":
                raise LanguageModelError(path, "neither an ARPA file nor a KenLM binary")
            begun = True
        elif match := COUNT_LINE.fullmatch(text):
            counts.append(int(match[2]))
        elif text == b"\\1-grams:" and len(counts) in ORDERS:
            yield 1, line
            return counts
        elif text:
            raise LanguageModelError(path, f"its header is wrong at {text[:40].decode('utf-8', 'replace')!r}, or its "
                                           f"order is not {ORDERS.start} to {ORDERS.stop - 1}")
        yield 0, line
    raise LanguageModelError(path, "cut off: it ends within its header")


def read_words(path) -> list[str] | None:
    """Returns the words of an n-gram: the unigrams of an ARPA file, or the lines of a binary's `NAME.words`.

    None where there is no such file next to a binary. Raises LanguageModelError.
    """
    words = []
    with open_model(path) as file:
        if file.read(len(KENLM_BINARY)) == KENLM_BINARY:
            return _read_word_list(word_list(path))
        file.seek(0)
        for order, line in arpa_lines(path, file):
            if order > 1:
                break
            if order == 1 and len(fields := line.split()) >= 2:
                words.append(fields[1].decode("utf-8", "replace"))
    return words


def word_list(path) -> Path:
    """Returns the file that lists a binary's words: NAME.words, next to NAME.binary or NAME.binary.gz."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix == ".gz" else path).with_suffix(".words")


def _read_word_list(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise LanguageModelError(path, f"cannot be read ({error})") from None


def check_words(path, words: list[str], tokenizer: Tokenizer) -> list[str]:
    """Returns the words that the network can write, without symbols; reports the others if they are one in 1,000.

    Raises LanguageModelError where it cannot write most of them, and says so if their case is the reason.
    """
    words = [word for word in words if word not in (SPACE, *SYMBOLS)]
    writable = [word for word in words if not tokenizer.unknown(word)]
    missing = len(words) - len(writable)
    if not words:
        raise LanguageModelError(path, "has no words")
    if missing * 2 > len(words):
        other_case = sum(not tokenizer.unknown(word.swapcase()) for word in words)
        advice = f"; {other_case:,} can in the other case" if other_case > len(writable) else ""
        raise LanguageModelError(path, f"the network's alphabet cannot write {missing:,} of its {len(words):,} words"
                                       f"{advice}")
    if missing * 1000 > len(words):  # a few words of other scripts are in any book
        print(f"{path}: {missing:,} of {len(words):,} words are outside the network's alphabet", file=sys.stderr)
    return writable
