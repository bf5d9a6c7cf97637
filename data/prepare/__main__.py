"""Makes a corpus in LibriSpeech's layout from public recordings.

    python -m data.prepare digits                               downloads 16 MB, writes data/corpora/digits
    python -m data.prepare kathleen --source ARCHIVE.tar.gz     downloads nothing
    python -m data.prepare wuw --source wuw-corpus-ii           of a clone of https://github.com/wake-up-word/wuw-corpus-ii
    python -m data.prepare kathleen --audio_format opus         as in the published results, bit for bit with ffmpeg 5.1
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while packages are imported, Ctrl-C shows no traceback

import argparse
from pathlib import Path

from tqdm import tqdm

from data.corpus_folder import new_corpus, read_description
from data.prepare import digits, kathleen, read_digits, wuw
from data.prepare.source import read_files
from data.prepare.writing import FORMATS, write_corpus
from utils.cli.parser import OneLineParser
from utils.errors import one_line_errors

CORPORA = {"digits": digits, "kathleen": kathleen, "wuw": wuw, "read-digits": read_digits}
RECIPE = 1  # raise it whenever the same flags would give another corpus


def prepare(corpus: str, *, source: Path | None = None, output: Path | None = None, audio_format: str = "flac",
            download_dir: Path = Path("data")) -> dict:
    """Makes a corpus and returns its description, the content of its corpus.json; a complete one is left as it is.

    Args:
        corpus: a name in CORPORA.
        source: the data set's folder or its archive from GitHub; by default it is downloaded into `download_dir`, where
            its archive's checksum is known.
        output: the corpus' folder; data/corpora/CORPUS by default.
        audio_format: "flac", or "opus" as in the published results, by ffmpeg; Debian 12's gives the same bytes.

    Raises DataError, DownloadError and OSError.
    """
    recipe, output = CORPORA[corpus], Path(output or f"data/corpora/{corpus}").expanduser().resolve()
    settings = {"recipe": RECIPE, "corpus": corpus, "audio_format": audio_format}
    if description := read_description(output, settings):
        return description
    files = read_files(recipe.SOURCE, source and Path(source).expanduser(), Path(download_dir).expanduser())
    with new_corpus(output, settings) as folder:
        progress = tqdm(recipe.utterances(files), desc=f"preparing {corpus}", unit=" utterances", disable=None)
        return write_corpus(progress, folder, settings, recipe.BITRATE)


def main(arguments: list[str] | None = None) -> None:
    """Makes the corpus that the flags name and prints what each split has."""
    parser = OneLineParser(prog="python -m data.prepare", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=CORPORA)
    parser.add_argument("--source", type=Path, help="the data set's folder or GitHub archive; default: download it")
    parser.add_argument("--output", type=Path, help="folder to make (default: data/corpora/CORPUS)")
    parser.add_argument("--audio_format", choices=FORMATS, default="flac", help="opus needs ffmpeg (default: flac)")
    parser.add_argument("--download_dir", type=Path, default=Path("data"), help="where archives go (default: data)")
    with one_line_errors(parser.prog):
        description = prepare(**vars(parser.parse_args(arguments)))
        for split, counts in description["splits"].items():
            print(f"{split}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
