"""Utterances packed into one block of memory: a few hundred bytes each, which data workers share."""

import marshal
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from utils.files.members import parse_member
from utils.tokenizer import Tokenizer


class Utterance(NamedTuple):
    """One utterance that can be used."""

    id: str
    audio: str  # path
    text: str  # normalised
    tokens: list[int]
    seconds: float
    speaker: str
    part: tuple[float, float] | None = None  # begin and duration in seconds; None for the whole file


class Utterances(Sequence[Utterance]):
    """A list of utterances that takes no more memory than their texts and paths.

    As tuples they take several times as much, for their tokens above all, and that again in every data worker: to
    look at an object counts a reference, which copies its page. Tokens are encoded anew at each access.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._records, self._ends, self._seconds = bytearray(), array("q", [0]), array("d")

    @classmethod
    def join(cls, parts: Iterable["Utterances"], tokenizer: Tokenizer) -> "Utterances":
        """Returns the utterances of several lists, one list after the other."""
        joined = cls(tokenizer)
        for part in parts:
            joined._ends.extend(array("q", (np.array(part._ends)[1:] + len(joined._records)).tolist()))
            joined._records += part._records
            joined._seconds.extend(part._seconds)
        return joined

    def append(self, *, id: str, audio: str, text: str, seconds: float, speaker: str,
               part: tuple[float, float] | None = None) -> None:
        """Adds an utterance, without its tokens."""
        self._records += marshal.dumps((id, audio, text, seconds, speaker, part))
        self._ends.append(len(self._records))
        self._seconds.append(seconds)

    @property
    def seconds(self) -> np.ndarray:
        """Returns the (N,) durations."""
        return np.array(self._seconds)

    def ids(self) -> Iterator[str]:
        """Yields the ids."""
        return (id for id, *_ in self._fields())

    def tars(self) -> np.ndarray:
        """Returns the (N,) numbers of the tars that hold the utterances; -1 for a file of its own."""
        numbers, found = {}, array("q")
        for _, audio, *_ in self._fields():
            member = parse_member(audio)
            found.append(numbers.setdefault(member.tar, len(numbers)) if member else -1)
        return np.array(found)

    def __len__(self) -> int:
        return len(self._seconds)

    def __getitem__(self, place: int | slice) -> "Utterance | Utterances":
        if isinstance(place, slice):
            return self.take(range(len(self))[place])
        i = range(len(self))[place]
        id, audio, text, seconds, speaker, part = marshal.loads(self._record(i))
        return Utterance(id, audio, text, self.tokenizer.encode(text), seconds, speaker, part)

    def take(self, places: Iterable[int]) -> "Utterances":
        """Returns the utterances at these places."""
        chosen = Utterances(self.tokenizer)
        for i in places:
            chosen._records += self._record(i)
            chosen._ends.append(len(chosen._records))
            chosen._seconds.append(self._seconds[i])
        return chosen

    def _fields(self) -> Iterator[tuple]:
        return (marshal.loads(self._record(i)) for i in range(len(self)))

    def _record(self, i: int) -> bytearray:
        return self._records[self._ends[i] : self._ends[i + 1]]
