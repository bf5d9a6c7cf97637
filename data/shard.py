"""Writes a split of any kind as tar shards in WebDataset's layout, for corpora of many small files.

    python -m data.shard data/kaldi/train --output data/shards/train --shard_size 2000

    OUTPUT/shard-000000.tar          000000.flac and 000000.json for each utterance, in an order drawn from --seed
    OUTPUT/shard-000000.index.json   where they lie, their texts and durations
    OUTPUT/corpus.json               settings and counts

Files of sound are copied as they are. Parts of files, files in other tar shards, and everything with --audio_format
flac are written as 16 kHz mono FLAC. A build that was stopped goes on with the shards that it lacks; the same flags
give the same bytes.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while packages are imported, Ctrl-C shows no traceback

import argparse
import hashlib
import io
import json
import math
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from data import readers
from data.corpus_folder import DESCRIPTION, new_corpus, read_description
from data.index import DataError, build_index, describe_faults
from data.readers.shards import read_index
from data.utterances import Utterance
from utils.audio import EXTENSIONS, SAMPLE_RATE, load_audio
from utils.cli.parser import OneLineParser
from utils.cli.values import nonnegative_int, positive_int
from utils.errors import one_line_errors
from utils.files.atomic import atomic_write
from utils.tokenizer import CharTokenizer

FORMATS = ("keep", "flac")


def build_shards(name: str, output: Path, *, data_root: Path = Path("data"), shard_size: int = 1000,
                 audio_format: str = "keep", seed: int = 0, num_workers: int = 4,
                 cache_dir: Path = Path(".cache/index")) -> dict:
    """Writes the shards of a split that are not there yet; returns settings, counts and what was left out.

    Args:
        shard_size: most utterances per shard.

    Raises DataError, AudioError and OSError.
    """
    entries, faults = readers.list_split(data_root, name)
    entries = list(entries)
    letters = "".join(sorted({char for entry in entries for char in entry.text})) or " "  # so that each text is kept
    index = build_index(name, entries, faults, CharTokenizer(alphabet=letters), cache_dir, normalizer=str.strip)
    utterances = index.utterances
    listed = "\n".join(f"{one.id}\t{one.text}\t{one.seconds}" for one in utterances)
    settings = {"shard_size": shard_size, "audio_format": audio_format, "seed": seed,
                "utterances": hashlib.sha256(listed.encode("utf-8", "backslashreplace")).hexdigest()}
    output = Path(output).expanduser().resolve()
    if description := read_description(output, settings):
        return description
    order = np.random.default_rng(seed).permutation(len(utterances))
    shards = np.array_split(order, math.ceil(len(order) / shard_size))
    with new_corpus(output, settings) as folder, ThreadPoolExecutor(num_workers) as pool:
        done = [pool.submit(_write_shard, folder / f"shard-{number:06d}.tar", [utterances[i] for i in shard],
                            audio_format) for number, shard in enumerate(shards)]
        try:
            for future in tqdm(done, desc=f"writing {output.name}", unit=" shards", disable=None):
                future.result()
        except BaseException:  # Ctrl-C as well: the pool would write all other shards before it is raised
            pool.shutdown(cancel_futures=True)
            raise
        description = {"settings": settings, "shards": len(shards), "utterances": len(utterances),
                       "hours": round(utterances.seconds.sum() / 3600, 4), "left_out": index.left_out}
        atomic_write(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return description


def _write_shard(path: Path, utterances: list[Utterance], audio_format: str) -> None:
    """Writes a shard and its index, unless it is there."""
    if not path.exists():
        part = path.with_suffix(".part")
        with tarfile.open(part, "w") as tar:
            for number, one in enumerate(utterances):
                suffix, content = _sound(one, audio_format)
                _add(tar, f"{number:06d}{suffix}", content)  # an id need not be a name, nor differ from such a number
                row = {"id": one.id, "text": one.text, "speaker": one.speaker}
                _add(tar, f"{number:06d}.json", json.dumps(row).encode())
        part.replace(path)
    if (count := len(read_index(path)["utterances"])) != len(utterances):
        raise DataError(f"{path}: {count} of {len(utterances)} utterances can be read back: delete it and build again")


def _sound(utterance: Utterance, audio_format: str) -> tuple[str, bytes]:
    """Returns the suffix and the content of an utterance's file of sound."""
    suffix = Path(utterance.audio).suffix.lower()
    if audio_format == "keep" and utterance.part is None and suffix in EXTENSIONS:
        return suffix, Path(utterance.audio).read_bytes()
    waveform, file = load_audio(utterance.audio, part=utterance.part), io.BytesIO()
    soundfile.write(file, waveform.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return ".flac", file.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def main(arguments: list[str] | None = None) -> None:
    """Writes the shards that the flags name, and prints what they hold."""
    parser = OneLineParser(prog="python -m data.shard", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="split, as for --train_sets")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--data_root", type=Path, default=Path("data"), help="folder of the corpora (default: data)")
    parser.add_argument("--shard_size", type=positive_int, default=1000, help="utterances per shard (default: 1000)")
    parser.add_argument("--audio_format", choices=FORMATS, default="keep", help="keep files as they are, or flac")
    parser.add_argument("--seed", type=nonnegative_int, default=0, help="of the order (default: 0)")
    parser.add_argument("--num_workers", type=positive_int, default=4, help="shards at once (default: 4)")
    with one_line_errors(parser.prog):
        args = parser.parse_args(arguments)
        args.data_root = args.data_root.expanduser()
        made = build_shards(**vars(args))
        print(f"{args.output}: {made['shards']:,} shards, {made['utterances']:,} utterances, {made['hours']:.2f} h"
              f"{describe_faults(made['left_out'])}")


if __name__ == "__main__":
    main()
