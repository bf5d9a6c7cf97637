"""`inference.py` as it is typed."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import CORPUS, ROOT, SPEECH, greedy_texts, tiny_network

import inference
from data.readers import list_split
from utils.audio import load_audio


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network of random weights: it writes nonsense, the same nonsense always."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt"
    network = tiny_network("mingru")
    torch.save({"recognizer": network.config,
                "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()}}, path)
    return path


def transcribe(capsys, *argv) -> tuple[int, list[str], str]:
    """Exit status, lines of standard output, and standard error."""
    with pytest.raises(SystemExit) as leave:
        inference.main([str(argument) for argument in argv])
    captured = capsys.readouterr()
    return leave.value.code, captured.out.splitlines(), captured.err


def test_one_file_one_line(checkpoint, capsys):
    expected = greedy_texts(inference.Recognizer.from_checkpoint(checkpoint), [load_audio(SPEECH[0])])
    assert transcribe(capsys, "--checkpoint", checkpoint, "--audio", SPEECH[0]) == (0, expected, "")


def test_any_rate_and_channels_give_the_words_of_the_original(checkpoint, tmp_path, capsys):
    """8 kHz loses sound; 48 kHz in stereo must not."""
    waveform = load_audio(SPEECH[0]).numpy()
    from torchaudio.functional import resample

    up = resample(torch.from_numpy(waveform), 16_000, 48_000).numpy()
    soundfile.write(tmp_path / "stereo.flac", np.stack([up, up], axis=1), 48_000)
    soundfile.write(tmp_path / "narrow.wav", waveform[::2], 8_000)
    status, lines, _ = transcribe(capsys, "--checkpoint", checkpoint, "--audio", SPEECH[0], tmp_path / "stereo.flac",
                                  tmp_path / "narrow.wav")
    assert status == 0 and len(lines) == 3
    assert lines[0].split(": ")[0] == str(SPEECH[0])


def test_folders_batches_and_json(checkpoint, capsys):
    """Every file of a folder, in order, the same whatever the batch size, scores up to the order of sums."""
    outputs = [transcribe(capsys, "--checkpoint", checkpoint, "--audio", CORPUS / "dev", "--output_format", "json",
                          "--batch_size", size) for size in (1, 3)]
    assert outputs[0][0] == outputs[1][0] == 0
    rows, others = ([json.loads(line) for line in lines] for _, lines, _ in outputs)
    scores, other_scores = ([row.pop("candidates")[0]["score"] for row in some] for some in (rows, others))
    assert rows == others and scores == pytest.approx(other_scores, abs=1e-3)
    assert all([word["word"] for word in row["words"]] == row["text"].split() for row in rows)
    assert [row["audio"] for row in rows] == [str(path) for path in sorted((CORPUS / "dev").rglob("*.opus"))]
    assert all(row["seconds"] == pytest.approx(soundfile.info(row["audio"]).duration, abs=1e-3) for row in rows)


def test_transcripts_in_json_are_a_corpus(checkpoint, tmp_path, capsys, monkeypatch):
    """Pseudo-labels: its lines are those of a manifest, which names the recordings as the command did."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").symlink_to(SPEECH[0].parent)
    _, lines, _ = transcribe(capsys, "--checkpoint", checkpoint, "--audio", "clips", "--output_format", "json")
    (tmp_path / "machine.jsonl").write_text("\n".join(lines))
    entries, faults = list_split(tmp_path, "machine.jsonl")
    assert [entry.text for entry in entries] == [json.loads(line)["text"] for line in lines] and entries
    assert all(len(load_audio(entry.audio)) for entry in entries) and not any(faults.values())


def test_output_dir(checkpoint, tmp_path, capsys):
    status, lines, _ = transcribe(capsys, "--checkpoint", checkpoint, "--audio", *SPEECH[:2], "--output_dir", tmp_path)
    assert (status, lines) == (0, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{path.stem}.txt" for path in SPEECH[:2])


def test_bad_files_are_named_and_the_others_go_on(checkpoint, tmp_path, capsys):
    """Missing, empty, corrupt; a silent one is transcribed as nothing."""
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not sound")
    (tmp_path / "cut.opus").write_bytes(SPEECH[0].read_bytes()[:60])
    soundfile.write(tmp_path / "nan.wav", np.full(1000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    bad = [tmp_path / name for name in ("absent.wav", "empty.wav", "text.wav", "cut.opus", "nan.wav", "none.wav")]
    status, lines, errors = transcribe(capsys, "--checkpoint", checkpoint, "--audio", *bad, SPEECH[0],
                                       tmp_path / "silent.wav")
    assert status == 1
    assert [line.split(": ")[0] for line in errors.splitlines()] == ["inference.py"] * len(bad)
    assert all(f"{path}: " in line for path, line in zip(bad, errors.splitlines(), strict=True))
    assert len(lines) == 2 and lines[1] == f"{tmp_path / 'silent.wav'}: "


@pytest.mark.parametrize(("flags", "message"), [
    (["--checkpoint", "absent.ckpt", "--audio", "x.wav"], "absent.ckpt: no such checkpoint file"),
    (["--checkpoint", str(ROOT / "LICENSE"), "--audio", "x.wav"], "LICENSE: not a checkpoint"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--device", "abacus"], "--device abacus"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--batch_size", "0"], "--batch_size: 0 must be at least 1"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--output_format", "doc"], "--output_format: invalid choice"),
    (["--checkpoint", "{good}", "--audio", str(ROOT / "configs")], "no .flac"),
    (["--checkpoint", "{foreign}", "--audio", "x.wav"], "not a checkpoint of this project"),
    (["--checkpoint", "{cut}", "--audio", "x.wav"], "damaged"),
    (["--checkpoint", "{unfit}", "--audio", "x.wav"], "does not fit"),
    (["--checkpoint", "{unknown}", "--audio", "x.wav"], "'hmm', which this version does not have"),
    (["--checkpoint", "{good}"], "give either --audio FILES or --stream"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--stream"], "give either --audio FILES or --stream"),
    (["--checkpoint", "{good}", "--stream", "--decoder", "beam"], "--stream writes text to standard output"),
    (["--checkpoint", "{good}", "--stream", "--output_format", "srt"], "leave out --decoder, --output_dir and"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--threads", "1000000"], "1000000 must be 1 to 1024"),
    (["--checkpoint", "{good}", "--stream"], "--stream: this network needs the whole recording; train with"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--output_format", "all"], "all needs --output_dir"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "y.wav", "--output_format", "srt"], "need --output_dir"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--nbest", "2"], "--nbest and --hotwords need --decoder beam"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--decoder", "beam", "--nbest", "99"], "needs --beam_size 99"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--beam_width", "0"], "--beam_size 0 must be at least 1"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--lm", "x.arpa"], "--lm, --nbest and --hotwords need"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--alpha", "-1"], "--alpha -1.0 must be at least 0"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--beta", "nan"], "--beta: nan must be finite"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--segment_seconds", "0.1"], "--segment_seconds 0.1 must be at"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--token_min_logp", "1"], "--token_min_logp 1.0 is a log-"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--skip_blanks", "98"], "--skip_blanks 98.0 is a probability"),
    (["--checkpoint", "{good}", "--audio", "x.wav", "--config", "absent.yaml"], "absent.yaml: No such file"),
    (["--checkpoint", "{good}", "--audio", str(SPEECH[0]), "--decoder", "beam", "--lm", "absent.arpa"],
     "absent.arpa: no such language model"),
])
def test_wrong_flags_and_checkpoints_in_one_line(checkpoint, tmp_path, capsys, flags, message):
    files = {name: tmp_path / f"{name}.ckpt" for name in ("foreign", "cut", "unfit", "unknown")}
    content = torch.load(checkpoint, weights_only=True)
    torch.save({"weights": torch.zeros(3)}, files["foreign"])
    files["cut"].write_bytes(checkpoint.read_bytes()[:2000])
    torch.save({**content, "recognizer": {**content["recognizer"], "rnn_size": 8}}, files["unfit"])
    torch.save({**content, "recognizer": {"model": "hmm"}}, files["unknown"])
    flags = [flag.format(good=checkpoint, tmp=tmp_path / "out", **files) for flag in flags]
    status, lines, error = transcribe(capsys, *flags)
    assert (status, lines) == (2, [])
    assert message in error and len(error.splitlines()) == 1 and error.startswith("inference.py: error: ")


def test_all_formats_and_patterns(checkpoint, tmp_path, capsys):
    pattern = CORPUS / "dev" / "**" / "*.opus"
    status, lines, _ = transcribe(capsys, "--checkpoint", checkpoint, "--audio", pattern, "--output_format", "all",
                                  "--output_dir", tmp_path)
    names = sorted(path.stem for path in CORPUS.glob("dev/**/*.opus"))
    assert (status, lines) == (0, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{extension}" for name in names for extension in ("json", "srt", "tsv", "txt", "vtt"))
    assert (tmp_path / f"{names[0]}.vtt").read_text().startswith("WEBVTT\n\n")


def test_standard_input(checkpoint, capsys, monkeypatch):
    expected = transcribe(capsys, "--checkpoint", checkpoint, "--audio", SPEECH[0])[1]
    monkeypatch.setattr("sys.stdin", type("Input", (), {"buffer": SPEECH[0].open("rb")}))
    assert transcribe(capsys, "--checkpoint", checkpoint, "--audio", "-") == (0, expected, "")
    monkeypatch.setattr("sys.stdin", type("Input", (), {"buffer": (ROOT / "LICENSE").open("rb")}))
    status, _, error = transcribe(capsys, "--checkpoint", checkpoint, "--audio", "-")
    assert status == 1 and error.startswith("inference.py: -: not audio")


def test_beam_search_and_a_config(checkpoint, tmp_path, capsys):
    """A YAML file of flags, as the tuner writes it; both backends give the same lines."""
    (tmp_path / "decoding.yaml").write_text("decoder: beam\nbeam_size: 8\nnbest: 2\n")
    flags = ["--checkpoint", checkpoint, "--audio", SPEECH[0], "--config", tmp_path / "decoding.yaml"]
    native = transcribe(capsys, *flags)
    assert native[0] == 0 and len(native[1]) == 2 and "\t" in native[1][0]
    pytest.importorskip("pyctcdecode")
    assert transcribe(capsys, *flags, "--decoder_backend", "pyctcdecode")[1] == native[1]


def test_it_starts_without_the_training_packages(checkpoint):
    """As a user starts it; the heavy packages of training stay out."""
    code = """
import sys, inference
try:
    inference.main(sys.argv[1:])
except SystemExit as leave:
    assert not leave.code
heavy = {"lightning", "pytorch_lightning", "torchmetrics", "comet_ml", "pyctcdecode", "kenlm", "matplotlib", "jiwer",
         "sympy"}
assert not (heavy | {"data"}) & set(sys.modules), heavy & set(sys.modules)
"""
    command = [sys.executable, "-c", code, "--checkpoint", str(checkpoint), "--audio", str(SPEECH[0])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
