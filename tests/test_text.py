"""Normaliser, tokenizer, and how many frames CTC needs."""

import json
import os
import random
import subprocess
import sys
import time
from typing import get_args

import pytest
import torch
from conftest import CORPUS, ROOT
from torch.nn.functional import ctc_loss

from utils.tokenizer import (
    ENGLISH,
    TOKENIZERS,
    BPETokenizer,
    CharTokenizer,
    TokenizerType,
    build_tokenizer,
    ctc_frames_needed,
    learn_vocabulary,
    normalize,
)

CHARACTERS = [CharTokenizer(), CharTokenizer(alphabet=" aäöüß"), CharTokenizer(alphabet="x")]
PIECES = [BPETokenizer(vocabulary=["▁th", "er", "▁the", "in", "ing", "ed", "▁he"]),
          BPETokenizer(alphabet=" aäöüß", vocabulary=["aa", "▁ßa", "aaaa"]), BPETokenizer(alphabet="x")]
every_tokenizer = pytest.mark.parametrize("tokenizer", [*CHARACTERS, *PIECES], ids=lambda one: str(one.size))


def random_texts(tokenizer, count: int = 200, longest: int = 40) -> list[str]:
    """Normalised texts of a tokenizer's characters."""
    draw = random.Random(0)
    letters = sorted(tokenizer.characters)
    return [normalize("".join(draw.choices(letters, k=draw.randrange(longest)))) for _ in range(count)]


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


@pytest.mark.parametrize("tokenizer", CHARACTERS, ids=lambda tokenizer: tokenizer.decode(range(tokenizer.size)))
def test_symbols_never_collide(tokenizer):
    alphabet = "".join(tokenizer.labels)
    characters = tokenizer.encode(alphabet)
    symbols = [tokenizer.blank, *characters, tokenizer.sos, tokenizer.eos]
    assert sorted(symbols) == list(range(tokenizer.size))
    assert sorted([tokenizer.blank, *characters]) == list(range(tokenizer.ctc_size))
    assert tokenizer.decode([tokenizer.sos, *characters, tokenizer.blank, tokenizer.eos]) == alphabet


@pytest.mark.parametrize("tokenizer", PIECES, ids=lambda tokenizer: str(tokenizer.size))
def test_pieces_never_collide(tokenizer):
    """The blank, then each letter with and without the mark, then the vocabulary, then the sentence symbols."""
    letters = sorted(tokenizer.characters - {" "})
    singles, vocabulary = 2 * len(letters), tokenizer.config["vocabulary"]
    assert tokenizer.labels[0] == "" and sorted(tokenizer.labels[1 : singles + 1]) == sorted(
        [*letters, *("▁" + letter for letter in letters)])
    assert tokenizer.labels[singles + 1 :] == vocabulary
    assert len(set(tokenizer.labels)) == tokenizer.ctc_size == tokenizer.sos == tokenizer.eos - 1 == tokenizer.size - 2
    tokens = list(range(1, tokenizer.ctc_size))
    assert tokenizer.decode([tokenizer.sos, *tokens, tokenizer.blank, tokenizer.eos]) == tokenizer.decode(tokens)
    assert tokenizer.decode(tokens) == "".join(tokenizer.labels).replace("▁", " ")


@every_tokenizer
def test_texts_come_back(tokenizer):
    """Random texts of the whole alphabet, and each word by its own tokens."""
    for text in random_texts(tokenizer):
        tokens = tokenizer.encode(text)
        assert all(tokenizer.blank < token < tokenizer.ctc_size for token in tokens)
        assert tokenizer.text(tokens) == text
        spans = tokenizer.words(tokens)
        assert [word for word, _, _ in spans] == text.split()
        assert [tokenizer.text(tokens[first : last + 1]) for _, first, last in spans] == text.split()
        starts = [place for place, token in enumerate(tokens) if token in tokenizer.boundaries]
        assert len(starts) == (len(spans) if tokenizer.mark else text.count(" "))


@every_tokenizer
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
    assert set(get_args(TokenizerType)) == set(TOKENIZERS)
    with pytest.raises(ValueError, match="^tokenizer 'word' is none of char, bpe$"):
        build_tokenizer("word", alphabet="a")


@pytest.mark.parametrize(("text", "pieces"), [
    ("low lower", "▁low ▁low er"), ("lowest", "▁low est"), ("newer", "▁n e w er"), ("winner", "▁w i n ner"),
    ("slow lo", "▁s l o w ▁lo"), ("", "")])
def test_pieces_are_joined_in_the_order_in_which_they_were_learnt(text, pieces):
    """The example of Sennrich et al. 2016, and words that hold its pieces elsewhere."""
    tokenizer = BPETokenizer(alphabet=" deilnorstw", vocabulary=["er", "▁lo", "▁low", "es", "est", "ner"])
    assert [tokenizer.labels[token] for token in tokenizer.encode(text)] == pieces.split()
    assert tokenizer.unknown("over low") == {"v"}


@pytest.mark.parametrize(("alphabet", "vocabulary", "reason"), [
    (" ab", ["ab", "ab"], "each piece once"), (" ab", ["a"], "several letters"), (" ab", ["▁a"], "several letters"),
    (" ab", [""], "several letters"), (" ab", ["abc"], "several letters"), (" ab", ["a b"], "several letters"),
    (" ab", ["a▁b"], "several letters"), (" ab", ["▁▁ab"], "several letters"), (" ab", [7], "several letters"),
    (" ab", [None], "several letters"), (" ab", "ab", "several letters"), (" a▁", ["aa"], "must not hold ▁"),
    ("aa", [], "each character once"), ("", [], "each character once")], ids=str)
def test_bad_vocabularies(alphabet, vocabulary, reason):
    with pytest.raises(ValueError, match=reason):
        BPETokenizer(alphabet=alphabet, vocabulary=vocabulary)


def test_long_words_take_no_more_than_their_share_of_time():
    tokenizer, word = PIECES[0], "therein" * 30_000
    started = time.monotonic()
    tokens = tokenizer.encode(word)
    assert time.monotonic() - started < 20
    assert tokenizer.text(tokens) == word and tokenizer.labels[tokens[0]] == "▁th"


def transcripts() -> list[str]:
    """Random sentences, whose words and pieces are of different frequency, and which begin with every letter."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcd", weights=[8, 4, 2, 1], k=draw.randrange(1, 9))) for _ in range(300)]
    return [" ".join(draw.choices(words, k=8)) for _ in range(200)]


def test_vocabulary_is_the_librarys():
    """SentencePiece encodes every word as the tokenizer does, of which it knows nothing but the pieces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    texts, models = transcripts(), []
    train = sentencepiece.SentencePieceTrainer.train

    def keep(model_writer, **options):
        train(model_writer=model_writer, **options)
        models.append(sentencepiece.SentencePieceProcessor(model_proto=model_writer.getvalue()))

    sentencepiece.SentencePieceTrainer.train = keep
    try:
        vocabulary = learn_vocabulary(texts, alphabet=" abcd", vocab_size=60)
    finally:
        sentencepiece.SentencePieceTrainer.train = train
    letters, tokenizer = BPETokenizer(alphabet=" abcd"), BPETokenizer(alphabet=" abcd", vocabulary=vocabulary)
    assert tokenizer.ctc_size == 61 and len(vocabulary) == 52 == models[0].get_piece_size() - 9
    for word in {word for text in texts for word in text.split()}:
        written = models[0].encode("".join(chr(0xF0000 + token) for token in letters.encode(word)), out_type=str)
        pieces = ["".join(letters.labels[ord(char) - 0xF0000] for char in piece) for piece in written]
        assert [tokenizer.labels[token] for token in tokenizer.encode(word)] == pieces
    used = {token for text in texts for token in tokenizer.encode(text)}
    assert len(used) > 50


def test_vocabulary_is_the_same_in_every_process():
    """Whatever the order of the texts, and of Python's sets."""
    pytest.importorskip("sentencepiece")
    texts = transcripts()
    expected = learn_vocabulary(texts, alphabet=" abcd", vocab_size=40)
    assert learn_vocabulary(texts[::-1], alphabet=" abcd", vocab_size=40) == expected
    assert learn_vocabulary([*texts, "e", "f a"], alphabet=" abcd", vocab_size=40) == expected, "foreign texts"
    assert learn_vocabulary(texts, alphabet=" abcd", vocab_size=30) == expected[:-10], "more pieces, the same first"
    program = ("import json, sys; from utils.tokenizer import learn_vocabulary; "
               "print(json.dumps(learn_vocabulary(json.load(sys.stdin), alphabet=' abcd', vocab_size=40)))")
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", program], input=json.dumps(texts), capture_output=True, text=True,
                              cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, timeout=100)
        assert json.loads(done.stdout) == expected and not done.stderr


@pytest.mark.parametrize(("texts", "vocab_size", "reason"), [
    (["ab ab"], 4, "--vocab_size 4 must be above 4, two pieces for each letter of the alphabet"),
    (["ab ab"], -1, "--vocab_size -1 must be above 4"),
    (["ab ab"], 6, "--vocab_size 6 must be at most 5, all pieces of the training transcripts"),
    (["a b"], 5, "--vocab_size 5 must be at most 4"), ([], 5, "--vocab_size 5 must be at most 4"),
    (["xyz"], 5, "--vocab_size 5 must be at most 4")])
def test_sizes_that_no_vocabulary_has(texts, vocab_size, reason):
    pytest.importorskip("sentencepiece")
    with pytest.raises(ValueError, match=f"^{reason}"):
        learn_vocabulary(texts, alphabet=" ab", vocab_size=vocab_size)


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
