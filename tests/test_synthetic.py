"""Synthetic corpora: seeded, split by voice and by sentence, resumable, in LibriSpeech's layout."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT

import data.synthetic.corpus
from data.index import DataError
from data.readers.librispeech import list_entries
from data.synthetic.conditions import record_plainly, record_variedly
from data.synthetic.corpus import build_corpus
from data.synthetic.engines import ENGINES, SHIFTS, load_engine
from data.synthetic.engines.hibari import shift_pitch
from data.synthetic.sentences import draw_sentence, split_of
from utils.audio import load_audio
from utils.files.text import TextError
from utils.tokenizer import ENGLISH

pytest.importorskip("espeakng_loader", reason="the synthesiser is not installed: requirements-demo.txt")
SPLITS = ("train", "dev", "test")
DEMO = "782259fc5b487c2562f0c006a82d14ec93c8c00346c449970fc94ac73e02d57f"  # SHA-256
RATE = 16_000


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


def test_the_demo_corpus_stays_the_same(corpus):
    """Losses are compared to the digit. Texts and lengths depend on every random draw; samples on the processor too."""
    digest = hashlib.sha256()
    for path in [corpus / "corpus.json", corpus / "SPEAKERS.TXT", *sorted(corpus.rglob("*.trans.txt"))]:
        digest.update(path.read_bytes())
    for path in sorted(corpus.rglob("*.flac")):
        digest.update(f"{path.name} {soundfile.info(path).frames}".encode())
    assert digest.hexdigest() == DEMO


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
    with pytest.raises(DataError, match="other settings"):
        build_corpus(output=corpus, hours=0.03, seed=3)
    with pytest.raises(DataError, match="--hours must be above 0"):
        build_corpus(output=corpus, hours=0)


def test_a_killed_build_goes_on_with_the_chapters_that_it_lacks(corpus, tmp_path, monkeypatch):
    spoken, record = [], data.synthetic.corpus.record

    def interrupted(*arguments):
        if len(spoken) == 12:
            raise KeyboardInterrupt
        spoken.append(arguments)
        return record(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data.synthetic.corpus, "record", interrupted)
        build_corpus(output=tmp_path / "resumed", hours=0.02, seed=3)
    partial = tmp_path / "resumed.partial"
    chapters = {path.parent.relative_to(partial) for path in partial.rglob("*.trans.txt")}
    kept = {path.relative_to(partial): path.stat().st_mtime_ns for path in partial.rglob("*.flac")
            if path.parent.relative_to(partial) in chapters}
    assert 0 < len(kept) < 12 and not (tmp_path / "resumed").exists()
    build_corpus(output=tmp_path / "resumed", hours=0.02, seed=3)
    assert digests(tmp_path / "resumed") == digests(corpus)
    assert kept == {path: (tmp_path / "resumed" / path).stat().st_mtime_ns for path in kept}
    assert not partial.exists()


def test_what_another_build_left_is_not_used(corpus, tmp_path):
    partial = tmp_path / "other.partial"
    (partial / "train" / "1" / "2").mkdir(parents=True)
    (partial / "train" / "1" / "2" / "1-2.trans.txt").write_text("1-2-0000 LEFT OVER\n")
    (partial / ".settings.json").write_text(json.dumps({"recipe": 0}))
    build_corpus(output=tmp_path / "other", hours=0.02, seed=3)
    assert digests(tmp_path / "other") == digests(corpus)


@pytest.fixture(scope="module")
def prose(tmp_path_factory) -> Path:
    """A text of 300 lines, some of two sentences, with punctuation; some that cannot be used."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("text") / "prose.txt"
    lines = [f"\u201c{draw_sentence(rng).capitalize()},\u201d said he. {draw_sentence(rng).capitalize()}!"
             for _ in range(300)]
    path.write_text("\n".join([*lines, lines[0], "He was born in 1812.", "LOUD WORDS"]), encoding="utf-8")
    return path


def test_sentences_of_a_text(prose, tmp_path, capsys):
    """Each is used once, its hash names its split, and it is spoken with rooms and noise."""
    description = build_corpus(output=tmp_path / "corpus", hours=0.01, seed=3, text=prose)
    assert f"{prose}: read " in capsys.readouterr().out
    assert description["settings"]["recording"] == "varied" and description["settings"]["engine"] == "espeak"
    words = {split: [entry.text.lower() for entry in list_entries(tmp_path / "corpus" / split)[0]] for split in SPLITS}
    for split in SPLITS:
        assert len(set(words[split])) == len(words[split]) > 3 and {split_of(text) for text in words[split]} == {split}
    assert any(text.endswith("said he") for text in words["train"]) and set("".join(words["train"])) <= set(ENGLISH)
    command = [sys.executable, "-m", "data.synthetic", "--output", str(tmp_path / "again"), "--hours", "0.01",
               "--seed", "3", "--text", str(prose), "--num_workers", "2"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert digests(tmp_path / "again") == digests(tmp_path / "corpus")


def test_a_text_that_cannot_be_used(tmp_path):
    (tmp_path / "short.txt").write_text("One sentence only.\n")
    (tmp_path / "latin.txt").write_bytes("Caf\u00e9.\n".encode("latin-1"))
    for name, kind, reason in (("short.txt", DataError, "has no sentence for"), ("latin.txt", TextError, "not UTF-8"),
                               ("none.txt", DataError, "none.txt: no such file")):
        with pytest.raises(kind, match=reason):
            build_corpus(output=tmp_path / "corpus", hours=0.01, text=tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin.txt", "short.txt"]


@pytest.fixture(params=ENGINES)
def engine(request):
    """Each synthesiser that is installed here."""
    try:
        return load_engine(request.param)
    except DataError as error:
        pytest.skip(str(error))


def test_an_engine_says_the_same_whatever_it_said_before(engine):
    speaker, other = engine.list_speakers("train", 4, seed=1)[:2]
    first, rate = engine.speak("The cat sat on the mat.", speaker, random.Random(5))
    engine.speak("Something else, which is longer!", other, random.Random(6))
    again, same_rate = engine.speak("The cat sat on the mat.", speaker, random.Random(5))
    assert rate == same_rate and np.array_equal(first, again) and 0.7 < len(first) / rate < 4
    others = [engine.speak("The cat sat on the mat.", speaker, random.Random(seed)) for seed in range(6, 10)]
    assert not all(rate == other_rate and np.array_equal(first, other) for other, other_rate in others)


def test_speakers_of_an_engine(engine):
    """Those of two splits differ, and a virtual one stays within the ranges of its sex."""
    speakers = {split: engine.list_speakers(split, 40, seed=1) for split in SPLITS}
    assert len({speaker.number for split in SPLITS for speaker in speakers[split]}) == sum(map(len, speakers.values()))
    assert len({speaker[3:] for split in SPLITS for speaker in speakers[split]}) == sum(map(len, speakers.values()))
    assert {speaker.sex for speaker in speakers["train"]} <= {"F", "M"} and len(speakers["train"]) >= 40
    for speaker in speakers["train"]:
        settings = dict(speaker.settings)
        if "warp" in settings:
            pitch, warp = SHIFTS[engine.voices[speaker.voice] + speaker.sex]
            assert warp[0] <= settings["warp"] <= warp[1] and pitch[0] <= settings.get("pitch", 1) <= pitch[1]


def test_a_corpus_by_every_engine(engine, tmp_path, request):
    name = request.node.callspec.params["engine"]
    build_corpus(output=tmp_path / "corpus", hours=0.002, engine=name)
    entries, faults = list_entries(tmp_path / "corpus" / "train")
    assert len(entries) >= 4 and not faults
    assert all(0.05 < len(load_audio(entry.audio)) / RATE / len(entry.text) < 0.25 for entry in entries)
    assert f"{engine.label} " in (tmp_path / "corpus" / "SPEAKERS.TXT").read_text()


def test_hibari_moves_pitch_and_formants_apart():
    pytest.importorskip("hibari")
    engine, text = load_engine("hibari"), "She was nearly alone."

    def say(**settings) -> np.ndarray:
        values = {"pitch": 1.0, "warp": 1.0, "pace": 1.0, "liveliness": 1.0} | settings
        quiet = np.random.default_rng(0)
        return np.concatenate([engine._synthesize(part, values, quiet) for part in engine.tts.phonemize(text)])

    plain = say()
    itself = engine.tts(text, seed=0)
    assert np.linalg.norm(plain - itself) < 0.02 * np.linalg.norm(itself), "nothing moved is hibari itself"
    assert median_pitch(say(pitch=0.5)) < 0.7 * median_pitch(plain) < 0.55 * median_pitch(say(pitch=1.3))
    assert centroid(say(pitch=0.5)) == pytest.approx(centroid(plain), rel=0.03)
    assert median_pitch(say(warp=0.8)) == pytest.approx(median_pitch(plain), rel=0.06)
    assert centroid(say(warp=0.8)) < 0.87 * centroid(plain) < 0.87 * centroid(say(warp=1.2))
    assert len(say(pace=1.25)) == pytest.approx(len(plain) / 1.25, rel=0.1)


def test_moved_pitch():
    """The geometric mean times the factor, intervals stretched, pauses kept, nothing below the lowest voice."""
    pitch = np.array([0, 200, 100, 0, 400, 200], np.float32)
    moved = shift_pitch(pitch, {"pitch": 1.5, "liveliness": 0.5})
    assert moved == pytest.approx([0, 300, 300 / 2**0.5, 0, 300 * 2**0.5, 300])
    assert shift_pitch(pitch, {"pitch": 0.2, "liveliness": 1}).tolist() == pytest.approx([0, 55, 55, 0, 80, 55])
    assert shift_pitch(np.zeros(3, np.float32), {"pitch": 2, "liveliness": 1}).tolist() == [0, 0, 0]


def median_pitch(wave: np.ndarray, rate: int = 24_000) -> float:
    """Returns Hz, from the peak of the autocorrelation of frames of 50 ms."""
    found = []
    for start in range(0, len(wave) - 1200, 600):
        frame = wave[start : start + 1200]
        if np.sqrt(np.mean(frame**2)) > 0.3 * np.sqrt(np.mean(wave**2)):
            products = np.correlate(frame, frame, "full")[1199:]
            lags = products[rate // 400 : rate // 60] / np.arange(1200 - rate // 400, 1200 - rate // 60, -1)
            found.append(rate / (rate // 400 + int(np.argmax(lags > 0.9 * lags.max()))))
    return float(np.median(found))


def centroid(wave: np.ndarray) -> float:
    """Returns the mean frequency, as a share of the highest, with 12 dB per octave of emphasis."""
    power = np.abs(np.fft.rfft(np.diff(wave, n=2))) ** 2
    return float((power * np.arange(len(power))).sum() / power.sum() / len(power))


def test_varied_recordings():
    """The speech is in them at the stated ratio to the noise; some have a telephone's band, some a room."""
    speech = np.concatenate([np.zeros(800), np.sin(np.arange(RATE) * 0.3), np.zeros(800)]).astype(np.float32)
    recorded = [record_variedly(speech, random.Random(seed)) for seed in range(200)]
    assert np.array_equal(recorded[3], record_variedly(speech, random.Random(3)))
    assert all(wave.dtype == np.int16 and 0.24 < np.abs(wave.astype(int)).max() / 32767 < 0.96 for wave in recorded)
    silence = [len(wave) - len(speech) for wave in recorded]
    assert 0 <= min(silence) < 2000 and 11_000 < max(silence) <= 0.8 * RATE
    narrow = [band_share(wave, 4500, 8000) < 1e-6 for wave in recorded]
    assert 0.04 < np.mean(narrow) < 0.2
    ratios = [-10 * np.log10(1 - band_share(wave, 700, 830)) for wave in recorded]  # the tone has 764 Hz
    assert 10 < np.percentile(ratios, 2) and np.percentile(ratios, 98) > 25
    plain = record_plainly(speech, random.Random(0))
    assert len(plain) == len(speech) and plain.dtype == np.int16


def band_share(wave: np.ndarray, low: float, high: float) -> float:
    """Returns the share of the energy between two frequencies in Hz."""
    power = np.abs(np.fft.rfft(wave.astype(float))) ** 2
    frequencies = np.fft.rfftfreq(len(wave), 1 / RATE)
    return power[(frequencies >= low) & (frequencies < high)].sum() / power.sum()
