"""Build a demo corpus of spoken sentences with the eSpeak NG synthesiser: no download, any size.

    pip install -r requirements-demo.txt
    python -m data.synthetic --output data/corpora/demo --hours 2 --seed 0

The folder has LibriSpeech's own layout, so whatever reads LibriSpeech reads it:

    OUTPUT/corpus.json                                      settings and counts
    OUTPUT/SPEAKERS.TXT                                     which voice each speaker number is
    OUTPUT/train/1003/100017/1003-100017.trans.txt          a chapter's transcripts, upper case
    OUTPUT/train/1003/100017/1003-100017-0000.flac          16 kHz, mono, 16 bit

A speaker is an accent, a voice variant and a base pitch. `dev` and `test` have variants that `train` lacks,
in all accents, and sentences that no other split can have: a sentence's hash names its split. Speed, pitch,
liveliness, loudness and a low white noise vary with every utterance. All of it is drawn from `--seed`: on
one machine the same flags give the same bytes, with any number of workers. 100 hours take about 8 GB.

eSpeak NG is GPL software: only this module uses it, and only inside the functions that speak.
"""

import argparse
import collections
import functools
import itertools
import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.synthetic.sentences import HELD_OUT_SHARE, draw_sentence_of
from utils.errors import UserError, one_line_errors

RECIPE = 1  # raise it whenever the same flags would give another corpus
SAMPLE_RATE = 16_000  # Hz, as written
ESPEAK_RATE = 22_050  # Hz, as eSpeak speaks
FIRST_CHAPTER = {"train": 100_000, "dev": 200_000, "test": 300_000}
HELD_OUT_MINUTES = (6, 60)  # the least and the most; a tiny train lowers the least to half of itself
CHAPTER_SECONDS = (30, 120)
WORDS_PER_MINUTE = (105, 160)  # slow enough that 40 ms frames outnumber the letters, as CTC needs
PEAK = (0.25, 0.95)  # the loudest sample, of full scale
NOISE_DB = (20, 40)  # speech over white noise

# By file: the names that eSpeak gives its accents ("en-gb") are not all found by every build.
ACCENTS = "en-US en-US-nyc en en-GB-x-rp en-GB-x-gbclan en-GB-x-gbcwmd en-GB-scotland en-029".split()
# Variants that sound like people. Left out: whispers, robots, those that overload or break the timing.
VARIANTS = {
    "train": "m1 m2 m3 m5 m7 Alex Denis Gene Mario Michael Mike quincy f2 f4 f5 Annie aunty belinda linda",
    "dev": "m4 max f3",
    "test": "m6 robert f1",
}
FEMALE = "f1 f2 f3 f4 f5 Annie aunty belinda linda".split()


class Speaker(NamedTuple):
    """One voice. `number` and `pitch` (eSpeak's 0 to 99) are the same in every corpus, whatever its seed."""

    number: int
    split: str
    sex: str
    voice: str
    pitch: int


class Chapter(NamedTuple):
    """Utterances of one speaker, to be about `seconds` long together. `seed` fixes all of them."""

    number: int
    speaker: Speaker
    seconds: float
    seed: str


def list_speakers() -> list[Speaker]:
    """List the speakers of all splits, numbered from 1001."""
    speakers = []
    for split, variants in VARIANTS.items():
        for accent, variant in itertools.product(ACCENTS, variants.split()):
            voice, sex = f"{accent}+{variant}", "F" if variant in FEMALE else "M"
            pitch = random.Random(voice).randint(35, 65)
            speakers.append(Speaker(1001 + len(speakers), split, sex, voice, pitch))
    return speakers


def find_espeak() -> tuple[str, str]:
    """Return the paths of eSpeak NG's library and voices. RuntimeError, with the mend, where missing."""
    try:
        import espeakng_loader
    except ImportError:
        raise RuntimeError("eSpeak NG is not installed: pip install -r requirements-demo.txt") from None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def speak(text: str, *, voice: str, rate: int, pitch: int, liveliness: int, seed: int) -> np.ndarray:
    """Speak `text`: int16 samples [S] at 22,050 Hz.

    `voice` is an accent, "+" and a variant; `rate` is in words a minute; `pitch` and `liveliness` (how far
    the pitch moves) go from 0 to 99. RuntimeError where eSpeak is missing or refuses.
    """
    import ctypes

    path, voices = find_espeak()
    pieces = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, _events):
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0  # go on

    library = ctypes.CDLL(path)
    try:
        _set_up(library, voices, receive, voice)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        for parameter, value in ((1, rate), (2, 40), (3, pitch), (4, liveliness)):  # volume 40: never clips
            library.espeak_SetParameter(parameter, value, 0)
        words = text.encode()
        failed = library.espeak_Synth(words, ctypes.c_size_t(len(words) + 1), 0, 0, 0, 1, None, None)
        library.espeak_Terminate()
    finally:
        _unload(library)
    if failed or not pieces:
        raise RuntimeError(f"eSpeak NG had nothing to say for {text!r} as {voice}")
    return np.frombuffer(b"".join(pieces), np.int16)


def _set_up(library, voices: str, receive, voice: str) -> None:
    """Start eSpeak without threads (mode 2), unable to end the process (0x8000), speaking into `receive`."""
    if library.espeak_Initialize(2, 0, voices.encode(), 0x8000) != ESPEAK_RATE:
        raise RuntimeError(f"eSpeak NG did not start with {voices}: reinstall espeakng-loader")
    library.espeak_SetSynthCallback(receive)
    if library.espeak_SetVoiceByName(f"gmw/{voice}".encode()):
        raise RuntimeError(f"eSpeak NG has no voice {voice}: pip install -r requirements-demo.txt")


def _unload(library) -> None:
    """Unload the library. Its oscillators run on through every reset that it offers, so that an utterance
    would depend on those before it; loaded anew (0.2 ms) it says the same for the same arguments."""
    import _ctypes

    (_ctypes.FreeLibrary if os.name == "nt" else _ctypes.dlclose)(library._handle)


@functools.cache
def _resampler():
    """Return the module from 22,050 to 16,000 Hz, kept because its filters take as long as an utterance."""
    import torchaudio

    return torchaudio.transforms.Resample(ESPEAK_RATE, SAMPLE_RATE)


def record(sentence: str, speaker: Speaker, rng: random.Random) -> np.ndarray:
    """Speak `sentence` as `speaker`, with a noise and a loudness of its own: int16 samples [S] at 16 kHz."""
    import torch

    speech = speak(
        sentence,
        voice=speaker.voice,
        rate=rng.randint(*WORDS_PER_MINUTE),
        pitch=speaker.pitch + rng.randint(-6, 6),
        liveliness=rng.randint(35, 70),
        seed=rng.getrandbits(31),
    )
    wave = _resampler()(torch.from_numpy(speech.astype(np.float32))).numpy()
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(len(wave), dtype=np.float32)
    wave = wave + noise * np.sqrt(np.mean(wave**2)) * 10 ** (-rng.uniform(*NOISE_DB) / 20)
    return np.round(wave * (rng.uniform(*PEAK) * 32767 / np.abs(wave).max())).astype(np.int16)


def write_chapter(chapter: Chapter, root: Path) -> tuple[Speaker, int, int]:
    """Speak one chapter and write it under `root`; return its speaker, utterances and samples."""
    import soundfile

    rng, speaker = random.Random(chapter.seed), chapter.speaker
    name = f"{speaker.number}-{chapter.number}"
    folder = root / speaker.split / str(speaker.number) / str(chapter.number)
    folder.mkdir(parents=True)
    lines, samples = [], 0
    while not lines or samples < (chapter.seconds - 1.3) * SAMPLE_RATE:  # 1.3 s: half an utterance
        sentence = draw_sentence_of(speaker.split, rng)
        wave = record(sentence, speaker, rng)
        key = f"{name}-{len(lines):04d}"
        soundfile.write(folder / f"{key}.flac", wave, SAMPLE_RATE, subtype="PCM_16")
        lines.append(f"{key} {sentence.upper()}\n")
        samples += len(wave)
    (folder / f"{name}.trans.txt").write_bytes("".join(lines).encode())
    return speaker, len(lines), samples


def write_chapters(chapters: list[Chapter], root: Path, num_workers: int) -> list[tuple]:
    """Write all chapters as `write_chapter` does, behind a progress bar; with 0 workers, in this process.

    Workers are spawned, not forked, because torch's threads do not survive a fork. One torch thread each:
    a chapter is one core's work, and sums keep their order.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    import torch
    from tqdm import tqdm

    bar = functools.partial(tqdm, total=len(chapters), desc="speaking", unit="chapter", disable=None)
    write = functools.partial(write_chapter, root=root)
    if num_workers > 0:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, spawn, torch.set_num_threads, (1,)) as pool:
            return list(bar(pool.map(write, chapters)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(bar(map(write, chapters)))
    finally:
        torch.set_num_threads(threads)


def plan(hours: float, seed: int) -> list[Chapter]:
    """Lay out the chapters. Voices take turns in a random order, so that a small corpus too has many."""
    train, (least, most), (shortest, longest) = 3600 * hours, HELD_OUT_MINUTES, CHAPTER_SECONDS
    held_out = min(60 * most, max(HELD_OUT_SHARE * train, min(60 * least, train / 2)))
    chapters = []
    for split, seconds in {"train": train, "dev": held_out, "test": held_out}.items():
        voices = [speaker for speaker in list_speakers() if speaker.split == split]
        random.Random(f"{seed}/{split}").shuffle(voices)
        count = max(4, round(seconds / min(longest, max(shortest, seconds / len(voices)))))
        for i, number in enumerate(range(FIRST_CHAPTER[split], FIRST_CHAPTER[split] + count)):
            chapters.append(Chapter(number, voices[i % len(voices)], seconds / count, f"{seed}/{number}"))
    return chapters


def count_splits(written: list[tuple]) -> dict[str, dict]:
    """Return hours, utterances and speakers of each split."""
    counts = {}
    for split in FIRST_CHAPTER:
        speakers, utterances, samples = zip(*(w for w in written if w[0].split == split), strict=True)
        hours = round(sum(samples) / SAMPLE_RATE / 3600, 4)
        counts[split] = {"hours": hours, "utterances": sum(utterances), "speakers": len(set(speakers))}
    return counts


def describe_speakers(written: list[tuple]) -> str:
    """Return the speakers that were used, as text in the columns of LibriSpeech's SPEAKERS.TXT."""
    minutes = collections.Counter()
    for speaker, _, samples in written:
        minutes[speaker] += samples / SAMPLE_RATE / 60
    lines = [";ID  |SEX|SUBSET|MINUTES| NAME\n"]
    for (number, split, sex, voice, pitch), length in sorted(minutes.items()):
        lines.append(f"{number} | {sex} | {split:5}| {length:6.2f}| eSpeak NG {voice}, pitch {pitch}\n")
    return "".join(lines)


def read_finished(output: Path, settings: dict) -> dict | None:
    """Return the description of the corpus in `output`, or None where nothing is yet.

    FileExistsError where `output` holds a corpus of other settings, or something else.
    """
    if (output / "corpus.json").is_file():
        info = json.loads((output / "corpus.json").read_text(encoding="utf-8"))
        if info.get("settings") == settings:
            return info
        raise FileExistsError(f"{output} was built with other settings: delete it or choose another output")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} holds something that is no demo corpus: choose another output")
    return None


def build_corpus(*, output: str | Path, hours: float, seed: int = 0, num_workers: int = 0) -> dict:
    """Build a corpus in the folder `output` and return its description, the content of its corpus.json.

    `hours` is the size of train; dev and test have a twentieth of it each, but at most 60 minutes and at
    least 6, or half of train where that is less. `output` appears when it is complete; until then it is
    `output`.partial, which the next build removes. A complete corpus of the same settings is left as it is.
    With workers, a script that calls this needs `if __name__ == "__main__"`.

    Raises ValueError for hours or workers out of range, FileExistsError where `output` holds something else,
    RuntimeError where eSpeak is missing.
    """
    if not 0 < hours < math.inf or num_workers < 0:
        raise ValueError(f"hours must be above 0 and num_workers at least 0, not {hours} and {num_workers}")
    output = Path(output).expanduser().resolve()
    settings = {"recipe": RECIPE, "hours": float(hours), "seed": int(seed)}
    if info := read_finished(output, settings):
        print(f"{output} is complete already: left as it is")
        return info
    find_espeak()  # before anything is made or removed
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    chapters = plan(hours, seed)
    written = write_chapters(chapters, partial, min(num_workers, len(chapters)))
    info = {"settings": settings, "splits": count_splits(written)}
    (partial / "SPEAKERS.TXT").write_bytes(describe_speakers(written).encode())
    (partial / "corpus.json").write_bytes((json.dumps(info, indent=2) + "\n").encode())
    if output.exists():
        output.rmdir()  # it is empty, or read_finished had refused it
    partial.rename(output)
    return info


def main(arguments: list[str] | None = None) -> None:
    """Build the corpus that the flags name and print what each split has."""
    parser = argparse.ArgumentParser(prog="python -m data.synthetic", description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder to build, e.g. data/corpora/demo")
    parser.add_argument("--hours", type=float, default=2.0, help="size of train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another corpus (default: 0)")
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument("--num_workers", type=int, default=workers, help="processes; 0 for none but this one")
    with one_line_errors(parser.prog):
        try:
            info = build_corpus(**vars(parser.parse_args(arguments)))
        except (ValueError, RuntimeError) as error:
            raise UserError(error) from None
        for split, counts in info["splits"].items():
            print(f"{split}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
