"""Output formats."""

import json

import pytest

from utils.report.writers import CUE_SECONDS, LINE, WRITERS, cues, timestamp
from utils.types import Candidate, Transcript, Word

WORDS = [Word("hello", 0.5, 0.9, 0.99), Word("there", 1.0, 1.4, 0.5), Word("friend", 3661.0, 3661.5, 1.0)]
HEARD = Transcript("a.wav", "hello there friend", 3662.0, WORDS, [Candidate("hello there friend", -1.5)])


def test_srt_and_vtt():
    assert WRITERS["srt"].format(HEARD) == ("1\n00:00:00,500 --> 00:00:01,400\nhello there\n\n"
                                            "2\n01:01:01,000 --> 01:01:01,500\nfriend")
    vtt = WRITERS["vtt"].header + WRITERS["vtt"].format(HEARD)
    assert vtt.startswith("WEBVTT\n\n00:00:00.500 --> 00:00:01.400\nhello there\n\n")


def test_tsv_and_json_keep_times_and_confidence():
    lines = WRITERS["tsv"].format(HEARD).splitlines()
    assert lines[1].split("\t") == ["a.wav", "1.000", "1.400", "0.5000", "there"]
    row = json.loads(WRITERS["json"].format(HEARD))
    assert row["words"][2] == {"word": "friend", "start": 3661.0, "end": 3661.5, "confidence": 1.0}
    assert row["text"] == "hello there friend" and row["candidates"][0]["score"] == -1.5


def test_txt_lists_candidates():
    two = HEARD._replace(candidates=[Candidate("hello", -1.0), Candidate("hullo", -2.0)])
    assert WRITERS["txt"].format(HEARD) == "hello there friend"
    assert WRITERS["txt"].format(two) == "-1.000\thello\n-2.000\thullo"


def test_nothing_was_said():
    silence = Transcript("a.wav", "", 1.0, [], [Candidate("", 0.0)])
    assert [writer.format(silence) for name, writer in WRITERS.items() if name != "json"] == [""] * 4


def test_subtitles_are_short_enough_to_read():
    words = [Word("word" * (1 + i % 3), i * 0.7, i * 0.7 + 0.5, 1.0) for i in range(60)]
    found = cues(words)
    assert [word for cue in found for word in cue] == words
    for cue in found:
        assert cue[-1].end - cue[0].start <= CUE_SECONDS
    long = WRITERS["srt"].format(HEARD._replace(words=words))
    assert all(len(line) <= LINE + 12 for line in long.splitlines())


@pytest.mark.parametrize(("seconds", "expected"), [(0, "00:00:00,000"), (59.9996, "00:01:00,000"),
                                                   (3723.45, "01:02:03,450"), (360_000, "100:00:00,000")])
def test_timestamps(seconds, expected):
    assert timestamp(seconds, ",") == expected
