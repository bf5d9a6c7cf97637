"""How far are word starts from the truth?

    python -m benchmarks.timestamps --checkpoint best.ckpt --split data/corpora/digits/test

Recordings of one word each are joined with pauses between them, so that the place of every word is
known: a word starts where its recording first comes within 35 dB of its own loudest 10 ms.
"""

import argparse
import json
import random
from pathlib import Path

import jiwer
import torch

from data.readers.librispeech import list_entries
from models import Transcriber
from utils.audio import SAMPLE_RATE, load_audio
from utils.tokenizer import normalize
from utils.types import Word

ONSET = 10 ** (-35 / 10)  # of the power of the loudest 10 ms
GAPS = (0.1, 0.5)  # seconds


def onset(waveform: torch.Tensor) -> float:
    """Seconds before the first 10 ms that are loud enough to be speech."""
    power = waveform[: len(waveform) // 160 * 160].view(-1, 160).square().mean(dim=1)
    return int((power > ONSET * power.max()).nonzero()[0]) / 100


def join(words: list[tuple[str, str, torch.Tensor]], count: int, seed: int):
    """Strings of `count` words of one speaker: (waveform, words, true starts in seconds).

    Pauses are as loud as the quietest tenth of the recording before them: no recording has true silence.
    """
    generator = random.Random(seed)
    torch.manual_seed(seed)
    words = sorted(words, key=lambda word: (word[0], generator.random()))  # speaker by speaker, shuffled within
    for first in range(0, len(words) - count + 1, count):
        parts, spoken, starts, samples = [], [], [], 0
        for _, word, waveform in words[first : first + count]:
            spoken.append(word)
            starts.append(samples / SAMPLE_RATE + onset(waveform))
            noise = waveform.abs().quantile(0.1) * 1.5
            gap = noise * torch.randn(int(generator.uniform(*GAPS) * SAMPLE_RATE))
            parts += [waveform, gap]
            samples += len(waveform) + len(gap)
        yield torch.cat(parts), spoken, starts


def start_errors(found: list[Word], spoken: list[str], starts: list[float]) -> list[float]:
    """Found minus true start, seconds, of the words that were recognised."""
    chunks = jiwer.process_words(" ".join(spoken), " ".join(word.word for word in found) or "-").alignments[0]
    pairs = [(chunk.hyp_start_idx + i, chunk.ref_start_idx + i) for chunk in chunks if chunk.type == "equal"
             for i in range(chunk.ref_end_idx - chunk.ref_start_idx)]
    return [found[i].start - starts[j] for i, j in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors of word starts.")
    parser.add_argument("--checkpoint", required=True, nargs="+")
    parser.add_argument("--split", required=True, type=Path, help="folder in LibriSpeech layout")
    parser.add_argument("--words", type=int, default=4, help="words a string")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    entries, _ = list_entries(args.split)
    single = [(entry.speaker, normalize(entry.text), load_audio(entry.audio)) for entry in entries
              if len(entry.text.split()) == 1]
    print(f"{len(single)} recordings of one word, joined by {args.words}")
    print(f"{'checkpoint':50}{'words':>7}{'found':>7}{'median ms':>11}{'90 % below':>12}{'bias ms':>9}")
    rows = []
    for checkpoint in args.checkpoint:
        transcriber, errors, words = Transcriber(checkpoint), [], 0
        for waveform, spoken, starts in join(single, args.words, seed=0):
            errors += start_errors(transcriber.transcribe(waveform).words, spoken, starts)
            words += len(spoken)
        spread = torch.tensor(errors)
        row = {"checkpoint": checkpoint, "words": words, "found": len(errors),
               "median_ms": 1000 * float(spread.abs().median()), "p90_ms": 1000 * float(spread.abs().quantile(0.9)),
               "bias_ms": 1000 * float(spread.median())}
        rows.append(row)
        print(f"{checkpoint[-50:]:50}{words:7}{len(errors):7}{row['median_ms']:11.0f}{row['p90_ms']:12.0f}"
              f"{row['bias_ms']:9.0f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
