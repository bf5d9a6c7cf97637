"""N-grams from files: what is refused, their scores by hand, and both CTC beam searches with one."""

import gzip
import math
import os
import sys

import pytest
import torch

from utils.decoding.ctc_beam import CTCBeamSearch
from utils.decoding.options import DecodingOptions
from utils.lm.ngram import (
    KENLM_BINARY,
    SPACE,
    LanguageModelError,
    NGram,
    arpa_lines,
    check_words,
    decompressed,
    quiet_stderr,
    read_words,
)
from utils.lm.scorer import NGramScorer
from utils.tokenizer import CharTokenizer

pytest.importorskip("kenlm")
TOKENIZER = CharTokenizer()
ARPA = """
\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>
-2.0\t<unk>
-0.4\tsea\t-0.3
-0.6\tsee\t-0.2

\\2-grams:
-0.1\t<s> see
-0.2\tsee sea
-0.3\tsea </s>

\\end\\
"""


def write(path, content=ARPA):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_log_prob_by_hand(tmp_path):
    """Seen bigrams, backing off, and an unknown word."""
    ngram = NGram(write(tmp_path / "x.arpa"), TOKENIZER)
    for text, log10 in [("see sea", -0.1 - 0.2 - 0.3), ("sea", -0.5 - 0.4 - 0.3), ("tea", -0.5 - 2.0 - 1.0),
                        ("see see", -0.1 - 0.2 - 0.6 - 0.2 - 1.0), ("", -0.5 - 1.0)]:
        assert ngram.log_prob(text) == pytest.approx(log10 * math.log(10), abs=1e-5), text
    assert (ngram.over_characters, ngram.words) == (False, ["sea", "see"])


CHARACTERS = """\\data\\
ngram 1=6
ngram 2=2

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>
-2.0\t<unk>
-0.4\ta\t-0.3
-0.6\tb
-0.7\t<space>

\\2-grams:
-0.1\t<s> a
-0.2\ta b

\\end\\
"""


@pytest.mark.parametrize(("content", "texts"), [(ARPA, ["see sea", "sea tea", "", "see"]),
                                                (CHARACTERS, ["ab ba", "a", "b a c", ""])])
def test_steps_add_up_to_the_probability(tmp_path, content, texts):
    """What the search sums up character by character is the score of the whole text."""
    ngram = NGram(write(tmp_path / "x.arpa", content), TOKENIZER)
    for text in texts:
        scorer = NGramScorer(ngram, 1)
        total, last, state = 0.0, TOKENIZER.sos, scorer.initial()
        for token in [*TOKENIZER.encode(text), TOKENIZER.eos]:
            scores, state = scorer.score(torch.tensor([last]), state)
            total, last = total + float(scores[0, token]), token
        assert total == pytest.approx(ngram.log_prob(text), abs=1e-4), text


def test_packed_files(tmp_path):
    """By gzip, whatever the name."""
    packed = gzip.compress(ARPA.encode())
    for name in ("x.arpa.gz", "x.arpa", "x"):
        assert NGram(write(tmp_path / name, packed), TOKENIZER).log_prob("see sea") < 0
        assert read_words(tmp_path / name) == ["<s>", "</s>", "<unk>", "sea", "see"]


def test_words_of_a_packed_binary_are_listed_beside_it(tmp_path):
    """Also while it is unpacked elsewhere, as --tune does."""
    packed = write(tmp_path / "x.binary.gz", gzip.compress(KENLM_BINARY + bytes(100)))
    assert read_words(packed) is None
    with decompressed(packed) as plain:
        assert read_words(plain) is None
    write(tmp_path / "x.words", "sea\nsee\n")
    assert read_words(packed) == ["sea", "see"]
    with decompressed(packed) as plain:
        assert read_words(plain) == ["sea", "see"]


def test_words_of_a_binary_are_listed_beside_it(tmp_path):
    binary = write(tmp_path / "x.binary", KENLM_BINARY + bytes(100))
    assert read_words(binary) is None
    write(tmp_path / "x.words", "sea\nsee\n")
    assert read_words(binary) == ["sea", "see"]
    write(tmp_path / "x.words", b"\xff\xfe")
    with pytest.raises(LanguageModelError, match="x.words: cannot be read"):
        read_words(binary)
    assert "sea" in read_words(write(tmp_path / "x.arpa")), "an ARPA file lists its own"


BAD = {
    "no file": (None, "no such language model"),
    "empty": ("", "within its header"),
    "blank": ("\n \n", "within its header"),
    "text": ("how old are you\n" * 50, "neither an ARPA file nor a KenLM binary"),
    "bytes": (bytes(range(256)) * 20, "neither"),
    "upper case all over": (ARPA.upper(), "neither"),
    "header only": ("\\data\\\nngram 1=5\n", "within its header"),
    "cut among unigrams": (ARPA[:90], "within its 1-grams"),
    "cut among bigrams": (ARPA[:-30], ""),
    "no end": (ARPA.replace("\\end\\\n", ""), ""),
    "too few unigrams": (ARPA.replace("ngram 1=5", "ngram 1=6"), "5 1-grams, its header says 6"),
    "too many unigrams": (ARPA.replace("ngram 1=5", "ngram 1=4"), "5 1-grams, its header says 4"),
    "negative count": (ARPA.replace("ngram 2=3", "ngram 2=-2"), "header is wrong at 'ngram 2=-2'"),
    "huge count": (ARPA.replace("ngram 2=3", "ngram 2=18446744073709551614"), "header is wrong"),
    "unigrams only": ("\\data\\\nngram 1=1\n\n\\1-grams:\n-1\t<unk>\n\n\\end\\\n", "order is not 2 to 6"),
    "bad number": (ARPA.replace("-0.4", "minus"), ""),
    "positive": (ARPA.replace("-0.4", "0.4"), ""),
    "a section missing": (ARPA.replace("\\2-grams:", "\\3-grams:"), "damaged"),
    "more after the end": (ARPA + "-1\tsee\n", ""),
    "no sentence start": (ARPA.replace("<s>", "sss"), ""),
    "binary cut off": (KENLM_BINARY + b" format version 5\n\x00", ""),
    "no gzip": (b"\x1f\x8b" + bytes(50), "cannot be read"),
    "gzip cut off": (gzip.compress(ARPA.encode())[:-12], "cannot be read"),
    "gzip damaged": (gzip.compress(ARPA.encode())[:-8] + bytes(8), "cannot be read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(tmp_path, kind):
    """By each way in, in one line that begins with the path; none of them may end the process."""
    content, reason = BAD[kind]
    path = tmp_path / "x.arpa"
    if content is not None:
        write(path, content)
    options = DecodingOptions(decoder="beam", lm=str(path))
    for load in (lambda: NGram(path, TOKENIZER), lambda: CTCBeamSearch(options, TOKENIZER)):
        with pytest.raises(LanguageModelError) as error:
            load()
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
        assert reason in str(error.value)


def test_a_damaged_file_is_seen_by_reading_it(tmp_path):
    lines = ARPA.encode().splitlines(keepends=True)
    assert b"".join(line for _, line in arpa_lines("x", lines)) == ARPA.encode()
    for damaged, reason in [(lines[:-1], "within its 2-grams"),
                            (lines[:-4] + lines[-3:], "2 2-grams, its header says 3"),
                            ([*lines, b"-1\tsee\n"], "after its end")]:
        with pytest.raises(LanguageModelError, match=reason):
            list(arpa_lines("x", damaged))


def test_words_that_the_alphabet_lacks(tmp_path, capsys):
    assert check_words("x", ["sea", "see", "4", "<s>", SPACE], TOKENIZER) == ["sea", "see"]
    assert capsys.readouterr().err == "x: 1 of 3 words are outside the network's alphabet\n"
    assert len(check_words("x", ["sea"] * 999 + ["4"], TOKENIZER)) == 999 and not capsys.readouterr().err
    upper = write(tmp_path / "x.arpa", ARPA.replace("sea", "SEA").replace("see", "SEE"))
    with pytest.raises(LanguageModelError, match="cannot write 2 of its 2 words; 2 can in the other case"):
        NGram(upper, TOKENIZER)
    with pytest.raises(LanguageModelError, match="cannot write 2 of its 3 words$"):
        check_words("x", ["4", "5", "sea"], TOKENIZER)
    with pytest.raises(LanguageModelError, match="no words"):
        check_words("x", ["<s>", "</s>"], TOKENIZER)


def emissions(text: str, *, swap: str = "", seed: int = 0) -> torch.Tensor:
    """(T, C) log-probabilities that spell a text with blanks and noise; of a letter pair `swap` both are as likely."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2 * len(text), TOKENIZER.ctc_size, generator=generator)
    for i, char in enumerate(text):
        scores[2 * i, [TOKENIZER.encode(one)[0] for one in (swap if char in swap else char)]] += 6.0
        scores[2 * i + 1, TOKENIZER.blank] += 6.0
    return scores.log_softmax(dim=-1)


def test_both_searches_find_the_same_texts_with_an_ngram(tmp_path):
    """Its bigrams decide what the sounds leave open."""
    path = write(tmp_path / "x.arpa")
    batch = [emissions("see see", swap="ea"), emissions("sea", swap="ea", seed=1), emissions("tea", seed=2)]
    lengths = torch.tensor([len(one) for one in batch])
    padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
    texts = {}
    for backend in ("native", "pyctcdecode"):
        options = DecodingOptions(decoder="beam", lm=str(path), alpha=1.0, beta=0.5, decoder_backend=backend)
        with quiet_stderr():
            search = CTCBeamSearch(options, TOKENIZER)
        texts[backend] = [best[0][0] for best in search(padded, lengths)]
        search.close()
    assert texts["native"] == texts["pyctcdecode"]
    assert texts["native"][:2] == ["see sea", "sea"], "see see and see are as likely by their sounds"


def test_quiet_stderr(capfd):
    with quiet_stderr():
        os.write(2, b"from C\n")
        print("from Python", file=sys.stderr)
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "after\n"
