"""N-gram language models: build one from text, score text, download LibriSpeech's.

    python -m utils.lm build --text corpus.txt.gz data/LibriSpeech/train-clean-100 --order 4 --output data/lm/mine.arpa
    python -m utils.lm score --lm data/lm/mine.arpa --text data/LibriSpeech/dev-clean
    python -m utils.lm download 3-gram.pruned.1e-7

The exit status is 0, or 2 where a flag or a file is wrong.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while packages are imported, Ctrl-C shows no traceback

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from utils.cli.parser import OneLineParser
from utils.cli.values import nonnegative_float, positive_int
from utils.errors import UsageError, one_line_errors
from utils.files.download import fetch
from utils.lm.build import OUTPUTS, estimate, install, ngram_counts, split_units, staging_folder, summary
from utils.lm.kneser_ney import BEGIN, UNKNOWN, Corpus, number_words
from utils.lm.ngram import ORDERS, SPACE, NGram, arpa_lines, open_model
from utils.lm.text import find_texts, read_sentences
from utils.tokenizer import ENGLISH, CharTokenizer

URL = "https://www.openslr.org/resources/11"
TEXT = "librispeech-lm-norm.txt"
MD5 = {  # of the .gz files; OpenSLR states none, these are from sdrobert's LibriSpeech recipe for pydrobert
    "3-gram.pruned.3e-7.arpa": "8f67ec741827742eee05799ab7605b50",
    "3-gram.pruned.1e-7.arpa": "9a0f1325bcaf3a0f7b7be4be10823c2a",
    "3-gram.arpa": "74cbb837e582378c26c602e1c8cbcb9c",
    "4-gram.arpa": "6abdcd5b055bd482e4f9defe91d40408",
    TEXT: "c83c64c726a1aedfe65f80aa311de402",
}


def build(args: argparse.Namespace) -> None:
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


def check_text(args: argparse.Namespace, corpus: Corpus, tokenizer: CharTokenizer) -> Counter:
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


class Score(NamedTuple):
    """Result of scoring a text by an n-gram; logarithms are to base 10."""

    sentences: int
    units: int  # words, or characters of an n-gram over characters
    unknown: Counter  # units out of vocabulary
    log_prob: float  # of all units and sentence ends
    log_prob_known: float  # without the units out of vocabulary

    @property
    def perplexity(self) -> float:
        """Perplexity over all units and sentence ends."""
        return 10 ** (-self.log_prob / (self.units + self.sentences))

    @property
    def perplexity_known(self) -> float:
        """Perplexity without units out of vocabulary, as SRILM reports it."""
        return 10 ** (-self.log_prob_known / (self.units + self.sentences - self.unknown.total()))


def score_text(ngram: NGram, sentences: Iterable[str]) -> Score:
    """Scores normalised sentences, each with its end."""
    number, units, unknown, total, known = 0, 0, Counter(), 0.0, 0.0
    for sentence in sentences:
        words = ngram.units(sentence)
        scores = ngram.model.full_scores(" ".join(words), bos=True, eos=True)
        for word, (log_prob, _, missing) in zip([*words, "</s>"], scores, strict=True):
            total += log_prob
            known += 0.0 if missing else log_prob
            if missing:
                unknown[word] += 1
        number, units = number + 1, units + len(words)
    return Score(number, units, unknown, total, known)


def score(args: argparse.Namespace) -> None:
    """Prints perplexities and words out of vocabulary. Raises UsageError and LanguageModelError."""
    tokenizer = CharTokenizer(alphabet=args.alphabet)
    ngram = NGram(args.lm, tokenizer)
    found = score_text(ngram, read_sentences(args.text, tokenizer))
    if not found.sentences:
        raise UsageError(f"--text {' '.join(args.text)}: not one sentence in it")
    unit, missing = "characters" if ngram.over_characters else "words", found.unknown.total()
    print(f"{found.sentences:,} sentences, {found.units:,} {unit}, {missing:,} out of vocabulary "
          f"({missing / found.units:.2%})")
    print(f"perplexity {found.perplexity:.2f}, {found.perplexity_known:.2f} without {unit} out of vocabulary")
    if missing:
        often = ", ".join(f"{word} ({count})" for word, count in found.unknown.most_common(args.top))
        print(f"most often out of vocabulary: {often}")


def download(args: argparse.Namespace) -> None:
    """Downloads one of LibriSpeech's language models as a plain file in lower case, or the text they were made of.

    The archive stays next to it. Raises DownloadError, LanguageModelError and OSError.
    """
    name = args.name if args.name == TEXT else f"{args.name}.arpa"
    archive = fetch(f"{args.url}/{name}.gz", args.output_dir / f"{name}.gz", MD5[name])
    if name == TEXT:
        print(f"{archive}: {archive.stat().st_size / 1e6:,.1f} MB; build reads it as it is")
        return
    target = args.output_dir / (name if args.case == "lower" else f"{args.name}.upper.arpa")
    if target.exists():
        print(f"{target}: is there already")
        return
    with staging_folder(target) as folder:
        plain = folder / "model.arpa"
        unpack(archive, plain, lower=args.case == "lower")
        counts = ngram_counts(plain)
        install(plain, target)
    print(f"{target}: {summary(counts, target)}")


def unpack(archive: Path, target: Path, *, lower: bool) -> None:
    """Unpacks an ARPA file line by line. Raises LanguageModelError where it is damaged."""
    bar = {"desc": f"unpacking {archive.name}", "unit": " n-grams", "unit_scale": True, "disable": None}
    with open_model(archive) as source, open(target, "wb") as file:
        for _, line in tqdm(arpa_lines(archive, source), **bar):
            if lower:
                line = line.lower() if line.isascii() else line.decode().lower().encode()
            file.write(line)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line. Raises UsageError."""
    parser = OneLineParser(prog="utils.lm", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(title="commands", metavar="build|score|download", required=True)
    for add in (_add_build, _add_score, _add_download):
        add(commands)
    return parser.parse_args(argv)


def _add_build(commands) -> None:
    parser = commands.add_parser("build", help="an n-gram from text", description="Estimates an n-gram from text.")
    _add_text(parser)
    parser.add_argument("--order", type=int, default=4, help="most words of an n-gram, 2 to 6")
    parser.add_argument("--unit", choices=["word", "char"], default="word", help="what it predicts")
    parser.add_argument("--prune", type=nonnegative_float, default=0.0, metavar="THRESHOLD",
                        help="drop n-grams that change the perplexity by less than this share, e.g. 1e-8")
    parser.add_argument("--output", type=Path, required=True, help="NAME.arpa or NAME.arpa.gz")
    parser.set_defaults(run=build)


def _add_score(commands) -> None:
    parser = commands.add_parser("score", help="perplexity of a text", description="Perplexity of a text.")
    parser.add_argument("--lm", required=True, help="ARPA or KenLM binary file")
    _add_text(parser)
    parser.add_argument("--top", type=positive_int, default=10, help="words out of vocabulary that are named")
    parser.set_defaults(run=score)


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", nargs="+", required=True,
                        help="plain text or prose, one sentence per line, *.trans.txt, manifests (*.jsonl), .gz of "
                             "them, or folders of *.trans.txt")
    parser.add_argument("--alphabet", type=_alphabet, default=ENGLISH, help="characters of the network")


def _alphabet(text: str) -> str:
    try:
        CharTokenizer(alphabet=text)
        return text
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None


def _add_download(commands) -> None:
    parser = commands.add_parser("download", help="LibriSpeech's own n-grams", description="LibriSpeech's own n-grams.")
    parser.add_argument("name", choices=[name.removesuffix(".arpa") for name in MD5], help="a model, or their text")
    parser.add_argument("--output_dir", type=Path, default=Path("data/lm"), help="folder for it")
    parser.add_argument("--case", choices=["lower", "upper"], default="lower", help="of its words; upper at the source")
    parser.add_argument("--url", default=URL, help="a mirror's folder")
    parser.set_defaults(run=download)


def main(argv: list[str] | None = None) -> None:
    """Runs a command; leaves with the exit status that the module states."""
    with one_line_errors("utils.lm", less_memory="a part of the text needs less"):
        args = parse_arguments(argv)
        args.run(args)


if __name__ == "__main__":
    main()
