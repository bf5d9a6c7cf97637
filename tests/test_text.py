"""Normaliser, tokenizer, and how many frames CTC needs."""

import json

import pytest
import torch
from conftest import CORPUS
from torch.nn.functional import ctc_loss

from utils.tokenizer import ENGLISH, CharTokenizer, build_tokenizer, ctc_frames_needed, normalize

TOKENIZERS = [CharTokenizer(), CharTokenizer(alphabet=" aäöüß"), CharTokenizer(alphabet="x")]


@pytest.mark.parametrize(("text", "expected"), [
    ("HE DID NOT", "he did not"),
    ("  he\tdid \n not ", "he did not"),
    ("IT WON’T, ‘NO`", "it won't, 'no'"),
    ("ﬁne ＡＢＣ", "fine abc"),  # a ligature and full-width letters
    ("Cafe\u0301", "café"),
    ("a\u00a0b\u2028c", "a b c"),
    (" \n", ""),
    ("", ""),
])
def test_normalize(text, expected):
    assert normalize(text) == expected
    assert normalize(expected) == expected


def test_real_transcripts_are_spelled_and_read_back():
    tokenizer = CharTokenizer()
    lines = [line for path in CORPUS.rglob("*.trans.txt") for line in path.read_text().splitlines()]
    assert len(lines) == 20
    for line in lines:
        text = normalize(line.split(" ", 1)[1])
        assert not tokenizer.unknown(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.decode(range(tokenizer.size)))
def test_symbols_never_collide(tokenizer):
    alphabet = "".join(tokenizer.labels)
    characters = tokenizer.encode(alphabet)
    symbols = [tokenizer.blank, *characters, tokenizer.sos, tokenizer.eos]
    assert sorted(symbols) == list(range(tokenizer.size))
    assert sorted([tokenizer.blank, *characters]) == list(range(tokenizer.ctc_size))
    assert tokenizer.decode([tokenizer.sos, *characters, tokenizer.blank, tokenizer.eos]) == alphabet


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.decode(range(tokenizer.size)))
def test_config_rebuilds_it(tokenizer):
    again = build_tokenizer(**json.loads(json.dumps(tokenizer.config)))
    assert type(again) is type(tokenizer) and again.config == tokenizer.config and again.labels == tokenizer.labels


@pytest.mark.parametrize("text", ["", "he", "he did not", " he  did ", "  ", "a'b c"])
def test_words_of_a_token_sequence(text):
    """They are those of the text, in order, and their tokens alone decode to them; blanks stand for nothing."""
    tokenizer = CharTokenizer()
    for tokens in (tokenizer.encode(text), [0, *tokenizer.encode(text), 0, tokenizer.eos]):
        spans = tokenizer.words(tokens)
        assert [span.word for span in spans] == text.split()
        for word, first, last in spans:
            assert tokenizer.decode(tokens[first : last + 1]) == word
            assert tokenizer.blank < tokens[first] and tokens[last] < tokenizer.ctc_size


def test_boundaries():
    assert CharTokenizer().boundaries == [1] == CharTokenizer().encode(" ")
    assert CharTokenizer(alphabet="ab c").boundaries == [3]
    assert CharTokenizer(alphabet="x").boundaries == []


def test_there_is_no_other_tokenizer():
    with pytest.raises(ValueError, match="^tokenizer 'word' is none of char"):
        build_tokenizer("word", alphabet="a")


def test_unknown_characters_are_named():
    tokenizer = CharTokenizer()
    assert tokenizer.unknown("café 5") == {"é", "5"}
    assert tokenizer.unknown(ENGLISH) == set()
    with pytest.raises(ValueError, match="^characters outside the alphabet: 5 é$"):
        tokenizer.encode("café 5")


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_bad_alphabets(alphabet):
    with pytest.raises(ValueError, match="alphabet"):
        CharTokenizer(alphabet=alphabet)


@pytest.mark.parametrize("text", ["a", "abc", "aa", "aaa", "hello all", "abab", "bookkeeper"])
def test_ctc_has_a_path_from_the_frames_needed_on(text):
    tokenizer = CharTokenizer()
    tokens = tokenizer.encode(text)

    def loss(frames: int) -> torch.Tensor:
        log_probs = torch.zeros(frames, 1, tokenizer.ctc_size).log_softmax(-1)
        return ctc_loss(log_probs, torch.tensor([tokens]), torch.tensor([frames]), torch.tensor([len(tokens)]))

    needed = ctc_frames_needed(tokens)
    assert loss(needed).isfinite()
    if needed > 1:
        assert loss(needed - 1).isinf()


def test_nothing_needs_no_frames():
    assert ctc_frames_needed([]) == 0
