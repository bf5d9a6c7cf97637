"""Sentences of books to transcripts: the words that a reader would say, or a reason why they are not certain."""

import pytest

from utils.prose import ProseError, read_sentence, split_sentences


@pytest.mark.parametrize(("text", "words"), [
    ("“It’s late,” said Mr. Brown—and Mrs. O’Brien left.", "it's late said mister brown and missus o'brien left"),
    ("'Tis the Dean's well-known café, _naïve_ as ever . . .", "tis the dean's well known cafe naive as ever"),
    ("He bought apples, pears, etc., from Dr. Who;", "he bought apples pears et cetera from doctor who"),
    ("Don´t go to‐morrow!\ufeff", "don't go to morrow"),
    ("I am.", "i am"),
    ("Æsop's œuvre (in part)", "aesop's oeuvre in part"),
])
def test_words(text, words):
    assert read_sentence(text).words == words


def test_what_is_spoken_keeps_the_punctuation():
    assert read_sentence("“Yes,” said Mr. Brown .  .  . and  left?").spoken == '"Yes," said Mister Brown… and left?'


@pytest.mark.parametrize(("text", "reason"), [
    ("It cost 5 pounds.", "digits or symbols"), ("Tea & toast.", "digits or symbols"), ("For £ or $.", "other letters"),
    ("Louis XIV was king.", "capitals"), ("STOP it!", "capitals"), ("He said: привет.", "other letters"),
    ("I think that Mr.", "after a title"), ("— . . .", "without words"), ("", "without words"),
])
def test_what_is_not_certain_is_refused(text, reason):
    with pytest.raises(ProseError, match=reason):
        read_sentence(text)


def test_sentences_of_a_paragraph():
    paragraph = "“Is it Mr. Brown?” she asked. “No!” he said. Then all was still… Or was it? yes (he thought). \n"
    assert split_sentences(paragraph) == [
        '"Is it Mr. Brown?" she asked.', '"No!" he said.', "Then all was still…", "Or was it? yes (he thought)."]
    assert split_sentences("  \n") == []
