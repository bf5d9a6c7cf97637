"""python -m utils.lm: build, score and download, and every bad input."""

import errno
import gzip
import hashlib
import json
import math
import os
import random
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import CORPUS
from test_download import serving
from test_ngram import ARPA, BAD

from utils import normalizers
from utils.lm import __main__ as lm
from utils.lm.build import ngram_counts
from utils.lm.kneser_ney import BEGIN, END, BackoffModel, number_words
from utils.lm.ngram import NGram, load_kenlm, read_words
from utils.lm.text import read_sentences
from utils.tokenizer import CharTokenizer, normalize

kenlm = pytest.importorskip("kenlm")
ENGLISH = CharTokenizer()
SENTENCES = ["the cat sat", "the dog sat", "the cat ran", "a dog ran", "the cat sat on the dog", "a cat"]


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(SENTENCES) + "\n")
    return path


def run(*arguments) -> None:
    lm.main([str(argument) for argument in arguments])


def fail(capsys, *arguments) -> str:
    """The one line on standard error that a command ends with, status 2."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and lines[-1].startswith("utils.lm: error: ")
    assert not [line for line in lines[:-1] if "error" in line or "Traceback" in line]
    return lines[-1]


def total_probability(model, words: list[str], history: list[str]) -> float:
    state = kenlm.State()
    model.BeginSentenceWrite(state)
    for word in history:
        after = kenlm.State()
        model.BaseScore(state, word, after)
        state = after
    return math.fsum(10 ** model.BaseScore(state, word, kenlm.State()) for word in words if word != "<s>")


@pytest.mark.parametrize("options", [["--order", 2], ["--order", 4], ["--prune", 1e-2, "--order", 2],
                                     ["--unit", "char", "--order", 5]], ids=str)
def test_a_built_model_is_a_distribution(tmp_path, text, options):
    """After any history, the probabilities of all words, the end and the unknown word add up to 1."""
    run("build", "--text", text, "--output", tmp_path / "x.arpa", *options)
    model, words = load_kenlm(tmp_path / "x.arpa"), read_words(tmp_path / "x.arpa")
    assert {"<s>", "</s>", "<unk>"} < set(words)
    generator = random.Random(0)
    for _ in range(30):
        history = generator.choices([word for word in words if word[0] != "<"], k=generator.randrange(5))
        assert total_probability(model, words, history) == pytest.approx(1, abs=1e-5), history


def test_kneser_ney_by_hand(tmp_path):
    """Bigrams: c(a b) = 2, c(a c) = 1. Discounts n1 / (n1 + 2 n2); unigrams by the words before them."""
    (tmp_path / "text").write_text("a b\na b\na c\n")
    run("build", "--text", tmp_path / "text", "--order", 2, "--output", tmp_path / "x.arpa")
    model, state = load_kenlm(tmp_path / "x.arpa"), kenlm.State()
    model.BeginSentenceWrite(state)
    after = kenlm.State()
    discount = 2 / (2 + 2 * 2)  # a c, c </s> once; a b, b </s> twice; <s> a three times
    assert 10 ** model.BaseScore(state, "a", after) == pytest.approx((3 - discount) / 3, abs=1e-5)
    assert 10 ** model.BaseScore(after, "b", kenlm.State()) == pytest.approx((2 - discount) / 3, abs=1e-5)
    assert 10 ** model.BaseScore(after, "c", kenlm.State()) == pytest.approx((1 - discount) / 3, abs=1e-5)
    unigrams = {"a": 1, "b": 1, "c": 1, "</s>": 2, "<unk>": 0}  # different words before each; 5 in all
    discount = 3 / (3 + 2 * 1)
    unigrams = {word: max(n - discount, 0) / 5 + 4 * discount / 5 / 5 for word, n in unigrams.items()}
    weight = 2 * (2 / 6) / 3 / (1 - unigrams["b"] - unigrams["c"])
    assert 10 ** model.BaseScore(after, "a", kenlm.State()) == pytest.approx(weight * unigrams["a"], abs=1e-5)
    assert 10 ** model.BaseScore(after, "zebra", kenlm.State()) == pytest.approx(weight * unigrams["<unk>"], abs=1e-5)


def test_perplexity_by_hand(tmp_path, capsys):
    """Of the n-gram written in test_ngram.py: two sentences, one word of four unknown."""
    (tmp_path / "x.arpa").write_text(ARPA)
    (tmp_path / "text").write_text("See sea\n\n  tea SEA\n")
    run("score", "--lm", tmp_path / "x.arpa", "--text", tmp_path / "text")
    known = -(0.1 + 0.2 + 0.3) - (0.4 + 0.3)
    every = 10 ** -((known - 0.5 - 2.0) / 6)
    assert capsys.readouterr().out.splitlines() == [
        "2 sentences, 4 words, 1 out of vocabulary (25.00%)",
        f"perplexity {every:.2f}, {10 ** -(known / 5):.2f} without words out of vocabulary",
        "most often out of vocabulary: tea (1)"]


def test_perplexity_is_kenlms(tmp_path, text):
    run("build", "--text", text, "--order", 3, "--output", tmp_path / "x.arpa")
    ngram = NGram(tmp_path / "x.arpa", CharTokenizer())
    for sentence in SENTENCES:
        assert lm.score_text(ngram, [sentence]).perplexity == pytest.approx(ngram.model.perplexity(sentence), rel=1e-4)
    found = lm.score_text(ngram, SENTENCES)
    assert (found.sentences, found.units, found.unknown.total()) == (6, 20, 0)
    assert found.perplexity == found.perplexity_known < 10


def test_texts_of_every_kind(tmp_path):
    """Plain, transcripts, a manifest, packed or not, and a folder: the same sentences."""
    lines = [f"1-2-{i:04d} {sentence.upper()}" for i, sentence in enumerate(SENTENCES)]
    files = {"a.txt": [" The  cat, ".replace(",", ""), "", "<s> a ‘b’ </s> <space>"], "1/2/1-2.trans.txt": lines,
             "m.jsonl": [json.dumps({"audio": "a.wav", "text": sentence}) for sentence in SENTENCES]}
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(content) + "\n", encoding="utf-8-sig")
        with gzip.open(f"{path}.gz", "wb") as packed:
            packed.write(path.read_bytes())
    for suffix in ("", ".gz"):
        assert list(read_sentences([f"{tmp_path}/a.txt{suffix}"], ENGLISH)) == ["the cat", "a 'b'"]
        assert list(read_sentences([f"{tmp_path}/1/2/1-2.trans.txt{suffix}"], ENGLISH)) == SENTENCES
        assert list(read_sentences([f"{tmp_path}/m.jsonl{suffix}"], ENGLISH)) == SENTENCES
        upper = tmp_path / f"M.JSONL{suffix.upper()}"
        upper.write_bytes((tmp_path / f"m.jsonl{suffix}").read_bytes())
        assert list(read_sentences([str(upper)], ENGLISH)) == SENTENCES, "as the readers of corpora have it"
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "X.TRANS.TXT").write_text("\n".join(lines))
    assert list(read_sentences([str(tmp_path / "2")], ENGLISH)) == SENTENCES
    assert list(read_sentences([str(tmp_path / "1")], ENGLISH)) == 2 * SENTENCES
    assert "how old are you mother" in list(read_sentences([str(CORPUS / "dev")], ENGLISH))


def test_what_the_alphabet_lacks_is_counted(tmp_path, text, capsys):
    text.write_text("\n".join(SENTENCES) + "\n日本 cats λόγος λόγος\n")
    run("build", "--text", text, "--order", 2, "--output", tmp_path / "x.arpa.gz")
    out, err = capsys.readouterr()
    assert "2 of 10 different words are outside the alphabet, 3 in the text: λόγος 日本\n" in err
    assert "7 sentences, 24 words, 10 different\n" in out
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["text.txt", "x.arpa.gz"]
    assert read_words(tmp_path / "x.arpa.gz").count("λόγος") == 1


def test_pruning_leaves_less(tmp_path, text, capsys):
    for name, threshold in [("whole", 0), ("pruned", 1e-2)]:
        run("build", "--text", text, "--order", 2, "--prune", threshold, "--output", tmp_path / f"{name}.arpa")
    whole, pruned = (ngram_counts(tmp_path / f"{name}.arpa") for name in ("whole", "pruned"))
    assert whole[0] == pruned[0] and 0 < pruned[1] < whole[1]
    error = fail(capsys, "build", "--text", text, "--order", 4, "--prune", 1e6, "--output", tmp_path / "none.arpa")
    assert "--order 4 --prune 1000000.0: leaves no n-grams" in error and not (tmp_path / "none.arpa").exists()


def test_pruning_drops_what_changes_least(text):
    """Each bigram's relative change in perplexity, by the divergence of the whole distribution without it."""
    corpus = number_words(map(str.split, SENTENCES * 2 + ["the dog ran on", "a dog sat"]))
    model, words = BackoffModel(corpus, 2), len(corpus.words)
    unigrams, bigrams = model.tables

    def distribution(history: int) -> np.ndarray:
        probs = unigrams.backoff[history] * unigrams.prob
        rows = np.flatnonzero((bigrams.history == history) & bigrams.kept)
        probs[bigrams.word[rows]] = bigrams.prob[rows]
        return probs

    changes = np.empty(len(bigrams.word))
    for row, history in enumerate(bigrams.history):
        before = distribution(history)
        bigrams.kept[row] = False
        model._set_backoffs()
        after, often = distribution(history), unigrams.prob[END if history == BEGIN else history]
        bigrams.kept[row] = True
        model._set_backoffs()
        possible = np.arange(words) != BEGIN
        changes[row] = math.expm1(often * np.sum(before[possible] * np.log(before[possible] / after[possible])))
        assert before[possible].sum() == pytest.approx(1) == after[possible].sum()
    for threshold in np.sort(changes)[1::4] * 1.000001:
        model = BackoffModel(corpus, 2)
        model.prune(threshold)
        assert (model.tables[1].kept == (changes >= threshold)).all()


def test_pruning_keeps_the_histories_of_what_it_keeps(tmp_path):
    """Of random text: KenLM reads the rest, words all stay, and every distribution adds up to 1."""
    generator = random.Random(0)
    corpus = number_words([[f"w{int(generator.paretovariate(0.8))}" for _ in range(generator.randrange(1, 9))]
                           for _ in range(600)])
    model = BackoffModel(corpus, 4)
    before = model.sizes
    model.prune(1e-4)
    assert before[0] == model.sizes[0] and all(0 < n < m for n, m in zip(model.sizes[1:], before[1:], strict=True))
    for shorter, table in pairwise(model.tables):
        assert shorter.kept[table.history[table.kept]].all()
    model.write(tmp_path / "x.arpa")
    kenlm_model, words = load_kenlm(tmp_path / "x.arpa"), read_words(tmp_path / "x.arpa")
    assert ngram_counts(tmp_path / "x.arpa") == model.sizes and words == corpus.words
    for _ in range(20):
        history = generator.choices(words[3:], k=generator.randrange(5))
        assert total_probability(kenlm_model, words, history) == pytest.approx(1, abs=1e-5), history


def test_prose_becomes_what_networks_write():
    """Quotation marks, dashes, capitals, accents and abbreviations; a text that is clean stays as it is."""
    clean = normalizers.ProseCleaner(ENGLISH)
    for prose, expected in {
        "“Yes—I remember,” said Mr. Smith; ‘it was his.’": "yes i remember said mister smith it was his",
        "'You heard,' she said. 'Tis the dogs' café &c…": "you heard she said 'tis the dogs cafe and c",
        "Zoë’s Cæsar, λόγος, 日本!": "zoe's caesar λόγος 日本",
        "An' th' mill's _quiet_, o' course!": "an' th' mill's quiet o' course",
        "the 'clean' dogs'": "the 'clean' dogs'", "´— …": ""}.items():
        assert clean(normalize(prose)) == expected
    french = normalizers.ProseCleaner(CharTokenizer(alphabet=" abcdefé"))
    assert french(normalize("Café, à 12 & 13")) == "café a 12 & 13"


def test_numbers_are_spelled():
    pytest.importorskip("num2words")
    clean = normalizers.ProseCleaner(ENGLISH)
    assert clean(normalize("In 1848, 1,000 of 2005; the 3rd 21st 3.5% £10 x12345678901234567")) == (
        "in eighteen forty eight one thousand of two thousand and five the third twenty first three point five "
        "percent ten x one two three four five six seven eight nine zero one two three four five six seven")


def test_novels_are_a_text(tmp_path, capsys):
    """As they are printed, in a file of any encoding that names itself."""
    (tmp_path / "novel.txt").write_text("“Sit!” said Mrs. B—; ‘the cat sat.’\n\n'The dog, too,' he cried.\n", "utf-16")
    run("build", "--text", tmp_path / "novel.txt", "--order", 2, "--output", tmp_path / "x.arpa")
    assert "2 sentences, 12 words, 11 different\n" in capsys.readouterr().out
    assert set(read_words(tmp_path / "x.arpa")[3:]) == set("sit said missus b the cat sat dog too he cried".split())


def test_a_full_disk_is_told_by_the_name_of_the_output(tmp_path, text, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(BackoffModel, "write", full)
    error = fail(capsys, "build", "--text", text, "--order", 2, "--output", tmp_path / "x.arpa")
    assert error == f"utils.lm: error: {tmp_path / 'x.arpa'}: No space left on device"
    assert list(tmp_path.iterdir()) == [text]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for KenLM's programs, by name and shell script."""

    def install(**scripts: str) -> None:
        for name, script in scripts.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")

    return install


def test_kenlms_own_program_writes_the_binary(tmp_path, text, programs, capsys):
    programs(build_binary='cp "$1" "$2"')
    run("build", "--text", text, "--order", 3, "--output", tmp_path / "x.arpa.gz")
    assert "x.binary is the same and loads faster" in capsys.readouterr().out
    assert gzip.decompress((tmp_path / "x.arpa.gz").read_bytes()) == (tmp_path / "x.binary").read_bytes()
    assert (tmp_path / "x.words").read_text().split() == read_words(tmp_path / "x.arpa.gz")
    (tmp_path / "bin" / "build_binary").unlink()
    run("build", "--text", text, "--order", 3, "--output", tmp_path / "x.arpa")
    assert not (tmp_path / "x.binary").exists(), "it was of another model"


def test_kenlms_program_may_fail(tmp_path, text, programs, capsys):
    programs(build_binary="echo some trouble >&2; exit 3")
    error = fail(capsys, "build", "--text", text, "--output", tmp_path / "x.arpa")
    assert "build_binary failed with status 3: some trouble" in error
    assert not [path for path in tmp_path.iterdir() if "arpa" in path.name]


BAD_BUILDS = {
    "no such text": (["--text", "nowhere.txt"], "--text nowhere.txt: no such file"),
    "empty": (["--text", "empty.txt"], "--text empty.txt: not one sentence"),
    "folder": (["--text", "folder"], "--text folder: no *.trans.txt"),
    "bytes": (["--text", "bytes.txt"], "--text bytes.txt: begins as UTF-16 but is not"),
    "gzip cut off": (["--text", "cut.txt.gz"], "--text cut.txt.gz: Compressed file ended"),
    "no gzip": (["--text", "no.txt.gz"], "--text no.txt.gz: Not a gzipped file"),
    "manifest": (["--text", "m.jsonl"], "--text m.jsonl: line 2: no 'text' string"),
    "another script": (["--text", "foreign.txt"], "3 of 4 different words are outside the alphabet (б в г): give"),
    "order 0": (["--order", "0"], "--order 0: KenLM reads orders 2 to 6"),
    "order 7": (["--order", "7"], "--order 7: KenLM reads orders 2 to 6"),
    "order x": (["--order", "x"], "--order"),
    "threshold": (["--prune", "-1"], "--prune: -1 must be at least 0"),
    "unit": (["--unit", "syllable"], "--unit"),
    "alphabet": (["--alphabet", "aab"], "must name each character once"),
    "output": (["--output", "x.bin"], "--output x.bin: must be a file that ends in .arpa or .arpa.gz"),
    "a folder for output": (["--output", "folder.arpa"], "--output folder.arpa: must be a file"),
    "a file for a folder": (["--output", "text.txt/x.arpa"], "text.txt: File exists"),
}


@pytest.mark.parametrize("kind", BAD_BUILDS)
def test_bad_builds(tmp_path, text, capsys, monkeypatch, kind):
    """One line, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    for name, content in {"empty.txt": b"\n \n", "bytes.txt": b"\xff\xfe\x00", "foreign.txt": "б, a в! г.\n".encode(),
                          "cut.txt.gz": gzip.compress(text.read_bytes())[:-9], "no.txt.gz": b"text",
                          "m.jsonl": b'{"text": "a"}\n{"txt": "b"}\n'}.items():
        Path(name).write_bytes(content)
    Path("folder").mkdir()
    Path("folder.arpa").mkdir()
    before = sorted(tmp_path.rglob("*"))
    flags, message = BAD_BUILDS[kind]
    assert message in fail(capsys, "build", "--text", text, "--output", "x.arpa", *flags)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["no file", "text", "cut among unigrams", "negative count", "gzip cut off"])
def test_bad_models_are_not_scored(tmp_path, text, capsys, kind):
    path = tmp_path / "x.arpa"
    if BAD[kind][0] is not None:
        path.write_bytes(BAD[kind][0] if isinstance(BAD[kind][0], bytes) else BAD[kind][0].encode())
    assert f"utils.lm: error: {path}: " in fail(capsys, "score", "--lm", path, "--text", text)
    assert "--text: expected at least one" in fail(capsys, "score", "--lm", path, "--text")


def test_a_model_in_upper_case_is_not_scored(tmp_path, text, capsys):
    path = tmp_path / "x.arpa"
    path.write_text(ARPA.replace("sea", "SEA").replace("see", "SEE"))
    assert "2 can in the other case" in fail(capsys, "score", "--lm", path, "--text", text)


UPPER = ARPA.replace("sea", "SEA").replace("see", "SÉE").replace("unk", "UNK")
MODEL, FILE = "3-gram.pruned.3e-7", "3-gram.pruned.3e-7.arpa.gz"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(gzip.compress(UPPER.encode()), f"/{FILE}") as server:
        yield server


def expect(monkeypatch, content: bytes, name: str = FILE) -> None:
    monkeypatch.setitem(lm.MD5, name.removesuffix(".gz"), hashlib.md5(content).hexdigest())


@pytest.mark.parametrize(("case", "name"), [("lower", f"{MODEL}.arpa"), ("upper", f"{MODEL}.upper.arpa")])
def test_download_of_a_model(server, tmp_path, monkeypatch, capsys, case, name):
    """Goes on where it broke, converts every n-gram, and does nothing the second time."""
    expect(monkeypatch, server.content)
    command = ["download", MODEL, "--url", server.url, "--output_dir", tmp_path / "lm", "--case", case]
    server.until = len(server.content) // 2
    error = fail(capsys, *command)
    assert "the connection broke" in error and f"{server.url}/{FILE}" in error
    server.until = None
    run(*command)
    assert [asked for _, asked in server.asked] == [None, f"bytes={len(server.content) // 2}-"]
    expected = UPPER if case == "upper" else UPPER.replace("SEA", "sea").replace("SÉE", "sée").replace("UNK", "unk")
    assert (tmp_path / "lm" / name).read_text() == expected
    assert {path.name for path in (tmp_path / "lm").iterdir()} == {name, FILE, f"{FILE}.md5"}
    assert "1-grams 5, 2-grams 3" in capsys.readouterr().out
    run(*command)
    assert "is there already" in capsys.readouterr().out and len(server.asked) == 2


def test_download_of_the_text(server, tmp_path, monkeypatch, capsys):
    server.offered, server.content = f"/{lm.TEXT}.gz", gzip.compress(b"THE CAT\n")
    expect(monkeypatch, server.content, lm.TEXT)
    run("download", lm.TEXT, "--url", server.url, "--output_dir", tmp_path)
    assert list(read_sentences([f"{tmp_path}/{lm.TEXT}.gz"], ENGLISH)) == ["the cat"]


@pytest.mark.parametrize("kind", ["wrong file", "gzip cut off", "gzip damaged", "cut among unigrams", "text",
                                  "too few unigrams"])
def test_what_is_downloaded_is_checked(server, tmp_path, monkeypatch, capsys, kind):
    """By its checksum; and as OpenSLR states none, by reading it through."""
    if kind != "wrong file":
        content = BAD[kind][0]
        server.content = content if isinstance(content, bytes) else gzip.compress(content.encode())
        expect(monkeypatch, server.content)
    error = fail(capsys, "download", MODEL, "--url", server.url, "--output_dir", tmp_path)
    assert ("checksum" if kind == "wrong file" else BAD[kind][1]) in error and str(tmp_path / FILE) in error
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".arpa" or path.name[0] == "."]


def test_bad_downloads(server, tmp_path, capsys):
    assert "'5-gram'" in fail(capsys, "download", "5-gram", "--output_dir", tmp_path)
    error = fail(capsys, "download", "4-gram", "--output_dir", tmp_path, "--url", server.url)
    assert "Not Found" in error and f"fetch {server.url}/4-gram.arpa.gz elsewhere" in error


def test_the_command_line(tmp_path, text, capsys, monkeypatch):
    assert "build|score|download" in fail(capsys)
    assert "'bild'" in fail(capsys, "bild")
    monkeypatch.setitem(sys.modules, "num2words", None)
    normalizers.spell_number.cache_clear()
    text.write_text("4 cats\n")
    assert "pip install -r requirements.txt" in fail(capsys, "build", "--text", text, "--output", tmp_path / "x.arpa")
