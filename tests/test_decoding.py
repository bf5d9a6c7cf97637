"""Greedy decoding and error rates."""

import pytest
import torch

from utils.decoding.ctc import greedy_decode
from utils.decoding.options import DecodingOptions
from utils.metrics import ErrorCounts, count_errors


def one_hot(path: list[int], classes: int = 5) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(path), classes).float().log()


@pytest.mark.parametrize(("path", "expected"), [
    ([1, 1, 0, 1, 2], [1, 1, 2]),
    ([0, 0, 0], []),
    ([3], [3]),
    ([2, 2, 2, 0, 2, 3, 3], [2, 2, 3]),
])
def test_greedy_joins_repeats_and_drops_blanks(path, expected):
    assert greedy_decode(one_hot(path)[None], torch.tensor([len(path)])) == [expected]


def test_greedy_stops_at_each_length():
    batch = torch.stack([one_hot([1, 0, 2, 3]), one_hot([4, 4, 1, 1])])
    assert greedy_decode(batch, torch.tensor([2, 3])) == [[1], [4, 1]]


def test_error_rates_are_sums_over_the_corpus():
    """One short bad and one long good utterance: errors over words, not a mean of two rates."""
    counts = count_errors(["a", "one two three four"], ["b", "one two three four"])
    assert counts == ErrorCounts(1, 5, 1, 19, 2)
    assert counts.wer == 1 / 5 and counts.cer == 1 / 19
    assert count_errors(["a"], ["b"]) + count_errors(["one two three four"], ["one two three four"]) == counts


@pytest.mark.parametrize(("reference", "hypothesis", "errors"), [
    ("a b c", "", 3), ("a b c", "a x b c", 1), ("a b c", "a c", 1), ("a b c", "c b a", 2),
])
def test_word_errors(reference, hypothesis, errors):
    assert count_errors([reference], [hypothesis]).word_errors == errors


def test_error_rates_refuse_nonsense():
    with pytest.raises(ValueError, match="1 references, but 2"):
        count_errors(["a"], ["a", "b"])
    assert count_errors(["", "a"], ["b c", "a"]).word_errors == 2
    assert count_errors([], []) == ErrorCounts()


@pytest.mark.parametrize(("options", "ctc", "attention"), [
    ({}, [], []), ({"beam_size": 5}, ["beam_size"], ["beam_size"]),
    ({"decoder": "beam", "beam_size": 5, "decoder_backend": "pyctcdecode"}, [], ["decoder_backend"]),
    ({"decoder": "beam", "alpha": 2, "beta": 3}, ["alpha", "beta"], ["alpha", "beta"]),
    ({"decoder": "beam", "lm": "a", "alpha": 2, "beta": 3, "lm_fusion": "rescore"}, ["lm_fusion"], ["beta"]),
    ({"decoder": "beam", "hotword_weight": 3}, ["hotword_weight"], ["hotword_weight"]),
    ({"decoder": "beam", "hotwords": ["b"], "hotword_weight": 3}, [], ["hotwords", "hotword_weight"]),
    ({"ctc_score_weight": 0.5, "coverage_weight": 1.0}, ["coverage_weight", "ctc_score_weight"], []),
    ({"skip_blanks": 0.9}, ["skip_blanks"], ["skip_blanks"])], ids=str)
def test_options_without_effect_are_named(capsys, options, ctc, attention):
    """With a CTC and with an attention network."""
    options = DecodingOptions(**options)
    assert (options.idle(False), options.idle(True)) == (ctc, attention)
    options.note_idle("las", True)
    said = capsys.readouterr().err
    assert said.startswith(f"note: --{', --'.join(attention)} without effect: a las network") if attention else not said
