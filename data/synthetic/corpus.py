"""Builds a corpus of synthetic speech in LibriSpeech's layout: no download, any size, any text.

    python -m data.synthetic --output data/corpora/demo --hours 2
    python -m data.synthetic --output data/corpora/novels --hours 60 --engine hibari --text novels.txt.gz

    OUTPUT/corpus.json                                      settings and counts
    OUTPUT/SPEAKERS.TXT                                     which voice each speaker number is
    OUTPUT/train/1003/100017/1003-100017.trans.txt          the transcripts of a chapter, upper case
    OUTPUT/train/1003/100017/1003-100017-0000.flac          16 kHz, mono, 16 bit

Without --text, sentences come from a small grammar. `dev` and `test` have speakers that `train` lacks, and sentences
that no other split can have: a sentence's hash names its split. All of it is drawn from --seed: on one machine the same
flags give the same bytes, with any number of workers, and a build that was killed goes on with the chapters that it
lacks. 100 hours take about 8 GB.
"""

import collections
import functools
import hashlib
import itertools
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from data.corpus_folder import new_corpus, read_description, write_description, write_transcripts
from data.index import DataError
from data.synthetic.conditions import RECORDINGS, resample
from data.synthetic.engines import FIRST_CHAPTER, Engine, Speaker, load_engine
from data.synthetic.sentences import HELD_OUT_SHARE, draw_sentence_of
from data.synthetic.texts import choose_sentences
from utils.audio import SAMPLE_RATE
from utils.files.atomic import atomic_write
from utils.process import children_ignore_sigint, end_children
from utils.prose import Sentence

RECIPE = 1  # raise it whenever the same flags would give another corpus
HELD_OUT_MINUTES = (6, 60)  # the least and the most; a tiny train lowers the least to half of itself
CHAPTER_SECONDS = (30, 120)
VIRTUAL_SPEAKER_SECONDS = 75  # a chapter, with a speaker of its own
CHARACTERS_PER_SECOND = 25  # more than any voice says
MOST_HOURS = 100_000  # 8 TB


class Chapter(NamedTuple):
    """Utterances of one speaker, to be about `seconds` long together. `seed` fixes all of them."""

    number: int
    speaker: Speaker
    seconds: float
    seed: str
    sentences: tuple[Sentence, ...] = ()  # from the grammar where there are none


class Studio(NamedTuple):
    """How a chapter is spoken and recorded; names, so that a worker can be told."""

    root: Path
    engine: str
    recording: str


class Written(NamedTuple):
    """A chapter that is on disk."""

    speaker: Speaker
    utterances: int
    samples: int


def plan_chapters(engine: Engine, hours: float, seed: int) -> list[Chapter]:
    """Returns the chapters. Voices take turns in a random order, so that a small corpus too has many."""
    train, (least, most), (shortest, longest) = 3600 * hours, HELD_OUT_MINUTES, CHAPTER_SECONDS
    held_out = min(60 * most, max(HELD_OUT_SHARE * train, min(60 * least, train / 2)))
    chapters = []
    for split, seconds in {"train": train, "dev": held_out, "test": held_out}.items():
        voices = engine.list_speakers(split, max(4, round(seconds / VIRTUAL_SPEAKER_SECONDS)), seed)
        random.Random(f"{seed}/{split}").shuffle(voices)
        count = max(4, round(seconds / min(longest, max(shortest, seconds / len(voices)))))
        for i, number in enumerate(range(FIRST_CHAPTER[split], FIRST_CHAPTER[split] + count)):
            chapters.append(Chapter(number, voices[i % len(voices)], seconds / count, f"{seed}/{number}"))
    return chapters


def give_sentences(chapters: list[Chapter], text: Path, seed: int) -> list[Chapter]:
    """Returns the chapters with sentences of a text file, enough for each; a short text is said again and again."""
    wanted = collections.Counter()
    for chapter in chapters:
        wanted[chapter.speaker.split] += math.ceil(chapter.seconds * CHARACTERS_PER_SECOND)
    chosen, report = choose_sentences(text, wanted, seed)
    print(report)
    sources = {split: itertools.cycle(sentences) for split, sentences in chosen.items()}
    return [chapter._replace(sentences=_take(sources[chapter.speaker.split], chapter.seconds * CHARACTERS_PER_SECOND))
            for chapter in chapters]


def _take(source: Iterator[Sentence], characters: float) -> tuple[Sentence, ...]:
    taken = []
    while characters > 0:
        taken.append(next(source))
        characters -= len(taken[-1].words)
    return tuple(taken)


def _iterate_sentences(chapter: Chapter, rng: random.Random) -> Iterator[Sentence]:
    """Yields sentences without end: those that the chapter was given, again and again, or new ones of the grammar."""
    yield from itertools.cycle(chapter.sentences)
    while True:
        sentence = draw_sentence_of(chapter.speaker.split, rng)
        yield Sentence(sentence, sentence)


def write_chapter(chapter: Chapter, studio: Studio) -> Written:
    """Speaks one chapter and writes it, the transcripts last; a chapter that has them is left as it is."""
    rng, speaker, engine = random.Random(chapter.seed), chapter.speaker, load_engine(studio.engine)
    folder = studio.root / speaker.split / str(speaker.number) / str(chapter.number)
    name, rows, samples = f"{speaker.number}-{chapter.number}", [], 0
    if (folder / f"{name}.trans.txt").is_file():
        lengths = [soundfile.info(path).frames for path in folder.glob("*.flac")]
        return Written(speaker, len(lengths), sum(lengths))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sentences = _iterate_sentences(chapter, rng)
    while not rows or samples < (chapter.seconds - 1.3) * SAMPLE_RATE:  # 1.3 s: half an utterance
        sentence = next(sentences)
        wave = record(sentence.spoken, speaker, engine, studio.recording, rng)
        rows.append((f"{name}-{len(rows):04d}", sentence.words.upper()))
        soundfile.write(folder / f"{rows[-1][0]}.flac", wave, SAMPLE_RATE, subtype="PCM_16")
        samples += len(wave)
    write_transcripts(folder, rows)
    return Written(speaker, len(rows), samples)


def record(text: str, speaker: Speaker, engine: Engine, recording: str, rng: random.Random) -> np.ndarray:
    """Returns (S,) int16 samples at 16 kHz: `text` as the speaker says it, in conditions drawn from `rng`."""
    return RECORDINGS[recording](resample(*engine.speak(text, speaker, rng)), rng)


def write_chapters(chapters: list[Chapter], studio: Studio, num_workers: int) -> list[Written]:
    """Writes all chapters as `write_chapter` does, behind a progress bar; with 0 workers, in this process.

    Workers are spawned, not forked, because torch's threads do not survive a fork. One torch thread each:
    a chapter is one core's work, and sums keep their order.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    import torch
    from tqdm import tqdm

    bar = functools.partial(tqdm, total=len(chapters), desc="speaking", unit="chapter", disable=None)
    write = functools.partial(write_chapter, studio=studio)
    if num_workers > 0:
        pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
        try:
            with children_ignore_sigint():
                written = pool.map(write, chapters)
            return list(bar(written))
        except BaseException:
            end_children()  # what they are at is done anew
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(bar(map(write, chapters)))
    finally:
        torch.set_num_threads(threads)


def describe_speakers(written: list[Written], engine: Engine) -> str:
    """Returns the speakers that were used, as text in the columns of LibriSpeech's SPEAKERS.TXT."""
    minutes = collections.Counter()
    for speaker, _, samples in written:
        minutes[speaker] += samples / SAMPLE_RATE / 60
    lines = [f"{speaker.number} | {speaker.sex} | {speaker.split:5}| {length:6.2f}| {engine.label} {speaker}\n"
             for speaker, length in sorted(minutes.items())]
    return "".join([";ID  |SEX|SUBSET|MINUTES| NAME\n", *lines])


def build_corpus(*, output: str | Path, hours: float, seed: int = 0, num_workers: int = 0, engine: str = "espeak",
                 text: str | Path | None = None, recording: str | None = None) -> dict:
    """Builds a corpus in the folder `output` and returns its description, the content of its corpus.json.

    `hours` is the size of train; dev and test have a twentieth of it each, but at most 60 minutes and at
    least 6, or half of train where that is less. A complete corpus of the same settings is left as it is.
    With workers, a script that calls this needs `if __name__ == "__main__"`.

    Args:
        output: appears when it is complete; until then it is `OUTPUT.partial`, with which the next build goes on.
        engine: a name in `engines.ENGINES`.
        text: a file of sentences or paragraphs, one per line; None for the demo's grammar.
        recording: a name in `conditions.RECORDINGS`; by default "plain" for the grammar, "varied" for a text.

    Raises DataError for hours or workers out of range, where `output` holds something else, and where the
    synthesiser is missing; OSError.
    """
    if not 0 < hours <= MOST_HOURS or num_workers < 0:
        raise DataError(f"--hours must be above 0 and at most {MOST_HOURS:,}, and --num_workers at least 0, "
                        f"not {hours} and {num_workers}")
    output, recording = Path(output).expanduser().resolve(), recording or ("varied" if text else "plain")
    settings = {"recipe": RECIPE, "hours": float(hours), "seed": int(seed)}
    if (engine, text, recording) != ("espeak", None, "plain"):
        settings |= {"engine": engine, "text": text and _checksum(Path(text)), "recording": recording}
    if description := read_description(output, settings):
        print(f"{output} is complete already: left as it is")
        return description
    speaking = load_engine(engine)  # before anything is made or removed
    chapters = plan_chapters(speaking, hours, seed)
    if text:
        chapters = give_sentences(chapters, Path(text), seed)
    with new_corpus(output, settings) as folder:
        written = write_chapters(chapters, Studio(folder, engine, recording), min(num_workers, len(chapters)))
        atomic_write(folder / "SPEAKERS.TXT", describe_speakers(written, speaking))
        return write_description(folder, settings, ((chapter.speaker.split, chapter.speaker.number,
                                                     chapter.utterances, chapter.samples) for chapter in written))


def _checksum(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"--text {path}: no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
