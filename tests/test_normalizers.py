"""Normalisers of transcripts by name: what they write, what they leave to be counted, and where they apply."""

import json
import shutil

import pytest
from conftest import CORPUS, SPEECH
from test_data import data_module, row, write_manifest
from test_resume_flags import refused
from training_runs import arguments, checkpoint

import evaluate
import train
from data import readers
from utils.normalizers import NORMALIZERS
from utils.tokenizer import ENGLISH, normalize

english = NORMALIZERS["english"]


@pytest.mark.parametrize(("text", "expected"), [
    ("HE DID NOT", "he did not"), ("'tis th' mill's", "'tis th' mill's"), ("", ""),
    ("“Yes—I remember,” said Mr. Smith; ‘it was his.’", "yes i remember said mister smith it was his"),
    ("Zoë’s well-known café: naïve!", "zoe's well known cafe naive"),
    ("R&B in the U.S. (he said)", "r and b in the u s he said"),
    ("In 1848, 1,000 of 2005; the 3rd, 21st.",
     "in eighteen forty eight one thousand of two thousand and five the third twenty first"),
    ("3.5%", "three point five percent"), ("chapter 7.", "chapter seven"), ("7", "seven")], ids=lambda text: text[:20])
def test_what_is_certain_is_written_as_it_is_said(text, expected):
    assert english(text) == expected
    assert english(expected) == expected
    assert set(expected) <= set(ENGLISH)


@pytest.mark.parametrize("text", ["$5", "£3.50", "at 10:30", "1/2 cup", "the 1990s", "3d", "2-3 years", "1.2.3",
                                  "3,14", "-5", "example.com", "[laughter] yes", "so <noise>", "a@b.c", "{breath}",
                                  "snake_case", "50°", "x = y", "sh*t", "日本 café", "λόγος"])
def test_what_is_not_certain_is_left_to_be_counted(text):
    """With its symbols and digits, which no network of English letters can write."""
    assert english(text) == normalize(text) or not set(english(text)) <= set(ENGLISH)
    assert not set(english(text)) <= set(ENGLISH)


def corpus_with_numbers(folder) -> None:
    """A manifest of three recordings, one with a number and one with a price."""
    rows = [row(path, text) for path, text in zip(SPEECH, ["so", "Well, 21 days!", "for $5"], strict=False)]
    write_manifest(folder / "mine.jsonl", *rows)


def test_it_applies_to_every_split_alike(tmp_path):
    corpus_with_numbers(tmp_path)
    options = {"train_sets": ["mine.jsonl"], "val_sets": ["mine.jsonl"], "test_sets": ["mine.jsonl"]}
    plain = data_module(tmp_path, **options).index("mine.jsonl")
    assert [u.text for u in plain.utterances] == ["so"]
    data = data_module(tmp_path, text_normalizer="english", **options)
    for training in (True, False):
        index = data.index("mine.jsonl", training=training)
        assert [u.text for u in index.utterances] == ["so", "well twenty one days"]
        assert index.left_out == {"with characters outside the alphabet": [f"{SPEECH[2]}: $ 5"]}


def test_pieces_are_learnt_from_normalised_texts(tmp_path):
    corpus_with_numbers(tmp_path)
    assert readers.read_transcripts(tmp_path, ["mine.jsonl"], normalizer=english)[1] == "well twenty one days"
    train.main(arguments(tmp_path / "run", "--data_root", str(tmp_path), "--train_sets", "mine.jsonl", "--val_sets",
                         "mine.jsonl", "--test_sets", "--text_normalizer", "english", "--tokenizer", "bpe", "--epochs",
                         "1", "--vocab_size", "70"))
    assert "▁twenty" in checkpoint(tmp_path / "run")["recognizer"]["vocabulary"]


def test_a_resumed_run_keeps_it_and_evaluation_has_the_flag(tmp_path, capsys):
    shutil.copytree(CORPUS / "dev", tmp_path / "dev")
    corpus_with_numbers(tmp_path)
    flags = ["--data_root", str(tmp_path), "--train_sets", "mine.jsonl", "--val_sets", "dev", "--test_sets"]
    output = tmp_path / "run"
    train.main(arguments(output, *flags, "--epochs", "1", "--text_normalizer", "english"))
    line = refused(capsys, *arguments(output, *flags, "--epochs", "2", "--checkpoint_path", "auto"))
    assert "--text_normalizer was english, is basic" in line
    train.main(arguments(output, *flags, "--epochs", "2", "--checkpoint_path", "auto", "--text_normalizer", "english"))
    evaluate.main(["--checkpoint", str(output / "checkpoints/last.ckpt"), "--data_root", str(tmp_path), "--device",
                   "cpu", "--test_sets", "mine.jsonl", "--text_normalizer", "english", "--num_workers", "0",
                   "--cache_dir", str(tmp_path / "cache"), "--report", str(tmp_path / "report")])
    found = [json.loads(line) for line in (tmp_path / "report/hypotheses.jsonl").read_text().splitlines()]
    assert "well twenty one days" in {one["reference"] for one in found}
