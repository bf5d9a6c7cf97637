"""Sentences from a text file: shuffled, split by their hash, each said once as long as there are enough."""

import collections
import random
from pathlib import Path

from data.index import DataError
from data.synthetic.sentences import split_of
from utils.files.text import read_lines
from utils.prose import ProseError, Sentence, read_sentence, split_sentences

MOST_CHARACTERS = 220  # of a sentence: about 13 seconds


def choose_sentences(path: Path, wanted: dict[str, int], seed: int) -> tuple[dict[str, list[Sentence]], str]:
    """Returns different sentences of each split, and one line on what was left out of those that were read.

    A line of the file is a sentence or a paragraph. Raises DataError where a split finds no sentence, and TextError.

    Args:
        wanted: characters of each split, after which it takes no more.
    """
    lines = [line for line in read_lines(path) if line]
    random.Random(f"{seed}/text").shuffle(lines)
    chosen, missing = {split: [] for split in wanted}, dict(wanted)
    left_out, known, read = collections.Counter(), set(), 0
    for text in (sentence for line in lines for sentence in split_sentences(line)):
        if max(missing.values()) <= 0:
            break
        read += 1
        try:
            sentence = _read_new_sentence(text, known)
        except ProseError as reason:
            left_out[str(reason)] += 1
        else:
            known.add(sentence.words)
            if missing[split := split_of(sentence.words)] > 0:
                chosen[split].append(sentence)
                missing[split] -= len(sentence.words)
    if empty := [split for split, sentences in chosen.items() if not sentences]:
        raise DataError(f"{path} has no sentence for {', '.join(empty)}: it needs more text")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common()) or "none"
    return chosen, f"{path}: read {read:,} sentences; left out: {reasons}"


def _read_new_sentence(text: str, known: set[str]) -> Sentence:
    """Raises ProseError for a sentence that is not used."""
    sentence = read_sentence(text)
    if len(sentence.words) > MOST_CHARACTERS:
        raise ProseError(f"of more than {MOST_CHARACTERS} characters")
    if sentence.words in known:
        raise ProseError("that were there before")
    return sentence
