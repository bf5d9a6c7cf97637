"""The demo corpus: seeded, split by voice and by sentence, in LibriSpeech's layout."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from conftest import ROOT

from data.readers.librispeech import list_entries
from data.synthetic.corpus import build_corpus
from utils.audio import load_audio
from utils.tokenizer import ENGLISH

pytest.importorskip("espeakng_loader", reason="the synthesiser is not installed: requirements-demo.txt")
SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("synthetic") / "corpus"
    build_corpus(output=output, hours=0.02, seed=3)
    return output


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_flags_give_the_same_bytes(corpus, tmp_path):
    """With another number of workers, from the command line."""
    command = [sys.executable, "-m", "data.synthetic", "--output", str(tmp_path / "again"), "--hours", "0.02",
               "--seed", "3", "--num_workers", "2"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert digests(tmp_path / "again") == digests(corpus)


def test_another_seed_is_another_corpus(corpus, tmp_path):
    build_corpus(output=tmp_path / "other", hours=0.004, seed=4)
    ours = {digest for name, digest in digests(corpus).items() if name.endswith(".flac")}
    assert ours.isdisjoint(digests(tmp_path / "other").values())


def test_splits_share_neither_voices_nor_sentences(corpus):
    entries = {split: list_entries(corpus / split) for split in SPLITS}
    for split in SPLITS:
        others = [entry for other in SPLITS if other != split for entry in entries[other][0]]
        assert {e.text for e in entries[split][0]}.isdisjoint({e.text for e in others})
        assert {e.speaker for e in entries[split][0]}.isdisjoint({e.speaker for e in others})
        assert entries[split][0] and not any(entries[split][1].values())


def test_it_is_speech_that_the_alphabet_spells(corpus):
    entries, _ = list_entries(corpus / "train")
    for entry in entries:
        assert set(entry.text.lower()) <= set(ENGLISH) and entry.text == entry.text.upper()
        assert soundfile.info(entry.audio).samplerate == 16_000
        waveform = load_audio(entry.audio)
        assert 0.2 < waveform.abs().max() < 1.0
        assert 0.05 < len(waveform) / 16_000 / len(entry.text) < 0.2, "seconds a character"


def test_a_finished_corpus_is_left_alone(corpus, capsys):
    before = digests(corpus)
    build_corpus(output=corpus, hours=0.02, seed=3)
    assert "left as it is" in capsys.readouterr().out and digests(corpus) == before
    with pytest.raises(FileExistsError, match="other settings"):
        build_corpus(output=corpus, hours=0.03, seed=3)
    with pytest.raises(ValueError, match="hours"):
        build_corpus(output=corpus, hours=0)
