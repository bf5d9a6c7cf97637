"""Recordings as people have them: folders of all kinds of files, links, pipes, names of any bytes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, SPEECH, from_keyboard
from test_inference import checkpoint, transcribe  # noqa: F401 (a fixture)
from test_streaming import causal_network, greedy_texts

from utils.audio import load_audio
from utils.cli import recordings
from utils.cli.recordings import find_recordings, output_stems
from utils.errors import UsageError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_are_searched_for_sound_of_every_kind(tmp_path):
    """What may be sound is tried, so that it is named where it cannot be read; macOS's `._x` files are nothing."""
    touch(*(tmp_path / "a" / name for name in ("1.wav", "2.M4A", "3.flac", "._1.wav", "notes.txt", "cover.jpg")))
    touch(tmp_path / "a" / "folder.wav" / "4.mp3")
    found, refused = find_recordings([str(tmp_path / "a")])
    assert found == [str(tmp_path / "a" / name) for name in ("1.wav", "2.M4A", "3.flac", "folder.wav/4.mp3")]
    assert refused == []


def test_an_empty_folder_does_not_stop_the_rest(tmp_path):
    touch(tmp_path / "full" / "1.wav", tmp_path / "empty" / "a.txt", tmp_path / "empty" / "b.txt")
    found, refused = find_recordings([str(tmp_path / name) for name in ("empty", "full")])
    assert found == [str(tmp_path / "full" / "1.wav")]
    assert [str(error) for error in refused] == [
        f"{tmp_path / 'empty'}: no .flac, .wav, .ogg, .opus, .mp3 in this folder, which holds 2 .txt"]
    with pytest.raises(UsageError, match="--audio .*empty: no .flac"):
        find_recordings([str(tmp_path / "empty")])


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.manifest", "train.jsonl"])
def test_lists_are_refused_by_name(tmp_path, name):
    touch(tmp_path / name, tmp_path / "1.wav")
    found, refused = find_recordings([str(tmp_path / name), str(tmp_path / "1.wav")])
    assert found == [str(tmp_path / "1.wav")]
    assert str(refused[0]).startswith(f"{tmp_path / name}: a list or a table; give sound files, a folder")


def test_linked_folders_are_searched_once(tmp_path):
    touch(tmp_path / "elsewhere" / "2.wav", tmp_path / "rec" / "1.wav")
    for link in ("more", "again"):
        (tmp_path / "rec" / link).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "rec" / "loop").symlink_to(tmp_path / "rec")
    found, _ = find_recordings([str(tmp_path / "rec")])
    assert [Path(path).name for path in found] == ["1.wav", "2.wav"]


def test_links_to_nothing_are_named_and_hidden_folders_are_none(tmp_path):
    touch(tmp_path / "1.wav", tmp_path / ".Trash-1000" / "2.wav", tmp_path / ".3.wav")
    (tmp_path / "more").symlink_to(tmp_path / "absent")
    found, refused = find_recordings([str(tmp_path)])
    assert found == [str(tmp_path / "1.wav")]
    assert [str(error) for error in refused] == [f"{tmp_path}/more: a link to something that is not there"]


def test_a_recording_is_taken_once(tmp_path, monkeypatch):
    touch(tmp_path / "a" / "1.wav")
    monkeypatch.chdir(tmp_path)
    assert find_recordings(["a/1.wav", "./a/1.wav", "a", "a/*.wav", "absent.wav", "**"])[0] == ["a/1.wav", "absent.wav"]


def test_equal_names_keep_their_folders():
    paths = ["r/a/1.wav", "r/b/1.wav", "r/b/2.wav", "3.wav", "3.flac", "-"]
    assert output_stems(paths) == {"r/a/1.wav": Path("a/1"), "r/b/1.wav": Path("b/1"), "r/b/2.wav": Path("2"),
                                   "3.wav": Path("3.wav"), "3.flac": Path("3.flac"), "-": Path("stdin")}
    assert output_stems(["../x/1.wav", "/1.wav"]) == {"../x/1.wav": (Path.cwd().parent / "x/1").relative_to("/"),
                                                      "/1.wav": Path("1")}
    with pytest.raises(UsageError, match="several recordings would be written to x.wav"):
        output_stems(["x.wav", "x.flac", "y/x.wav.mp3"])


def test_a_folder_as_people_have_it(checkpoint, tmp_path, capsys):  # noqa: F811
    """A name in Latin-1, a format that is not read, and equal names in two folders."""
    names = [b"a/1.opus", b"b/1.opus", b"b/caf\xe9.opus", b"b/memo.m4a"]
    for name in names:
        path = Path(os.fsdecode(os.fsencode(tmp_path / "rec") + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SPEECH[0], path)
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    status, lines, error = transcribe(capsys, "--checkpoint", checkpoint, "--audio", tmp_path / "rec")
    assert status == 1 and len(lines) == 3
    assert lines[2].startswith(f"{tmp_path}/rec/b/caf\\udce9.opus: ")
    assert error.startswith(f"inference.py: {tmp_path}/rec/b/memo.m4a: not audio that can be read")
    assert len(error.splitlines()) == 1
    status, lines, _ = transcribe(capsys, "--checkpoint", checkpoint, "--audio", tmp_path / "rec", "--output_dir",
                                  tmp_path / "out", "--output_format", "all")
    written = sorted(os.fsencode(found.relative_to(tmp_path / "out")) for found in (tmp_path / "out").rglob("*.txt"))
    assert (status, lines, written) == (1, [], [b"a/1.txt", b"b/1.txt", b"caf\xe9.txt"])


# -- as it is typed --------------------------------------------------------------------------------


def shell(command: str, checkpoint: Path, **environment) -> subprocess.CompletedProcess:  # noqa: F811
    """`inference` in a command is the program with a checkpoint, on one thread."""
    program = f"{sys.executable} inference.py --checkpoint {checkpoint}"
    return subprocess.run(["bash", "-c", command.replace("inference", program)], cwd=ROOT, text=True, timeout=120,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def save(network, path: Path) -> None:
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"recognizer": network.config, "state_dict": state}, path)


def test_pipes_are_read(checkpoint, capsys):  # noqa: F811
    """Standard input by both of its names, and process substitution."""
    text, = transcribe(capsys, "--checkpoint", checkpoint, "--audio", SPEECH[0])[1]
    done = shell(f"cat {SPEECH[0]} | inference --audio /dev/stdin", checkpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{text}\n", "")
    done = shell(f"inference --audio <(cat {SPEECH[0]}) <(echo nothing) - < {SPEECH[0]}", checkpoint)
    assert done.returncode == 1 and [line.split(": ")[1] for line in done.stdout.splitlines()] == [text, text]
    assert done.stderr.startswith("inference.py: /dev/fd/") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("command", "status", "error"), [
    ("inference --audio {speech} > /dev/full", 2, "inference.py: error: standard output: No space left on device\n"),
    ("inference --audio - <&-", 2, "inference.py: error: --audio -: standard input is closed\n"),
    ("inference --stream <&-", 2, "inference.py: error: --stream: standard input is closed\n"),
    ("cat {speech} | TMPDIR=/absent TEMP=/absent TMP=/absent inference --audio -", 0, ""),
    ("inference --audio {speech} {speech} | head -0; exit ${{PIPESTATUS[0]}}", 141, ""),
    ("inference --audio {speech} >&-", 0, ""),
])
def test_streams_that_are_closed_or_full(checkpoint, command, status, error):  # noqa: F811
    if "--stream" in command:
        checkpoint = checkpoint.with_name("causal.ckpt")
        save(causal_network(rnn_type="mingru"), checkpoint)
    done = shell(command.format(speech=SPEECH[0]), checkpoint)
    assert (done.returncode, done.stderr) == (status, error)


def test_a_pipe_that_sends_nothing_is_left(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Nobody writes to the one; whoever writes to the other sends nothing. The rest goes on."""
    monkeypatch.setattr(recordings, "PATIENCE", 1)
    names = [tmp_path / name for name in ("a.wav", "b.wav")]
    for name in names:
        os.mkfifo(name)
    writer = subprocess.Popen(["sh", "-c", f"exec sleep 60 > {names[1]}"])
    status, lines, error = transcribe(capsys, "--checkpoint", checkpoint, "--audio", *names, SPEECH[0])
    assert status == 1 and len(lines) == 1 and lines[0].startswith(str(SPEECH[0]))
    assert error.splitlines() == [f"inference.py: {name}: nothing has come from this pipe for 1 seconds"
                                  for name in names]
    writer.kill()
    writer.wait()


def test_standard_input_may_be_a_socket(checkpoint, capsys):  # noqa: F811
    """As other programs give it, where /dev/stdin cannot be opened."""
    text, = transcribe(capsys, "--checkpoint", checkpoint, "--audio", SPEECH[0])[1]
    ours, theirs = socket.socketpair()
    command = [sys.executable, "inference.py", "--checkpoint", str(checkpoint), "--audio", "/dev/stdin"]
    child = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, text=True)
    theirs.close()
    ours.sendall(SPEECH[0].read_bytes())
    ours.close()
    assert child.communicate(timeout=200)[0] == f"{text}\n" and child.returncode == 0


def test_an_output_folder_that_cannot_be_is_named_before_the_work(checkpoint, tmp_path, capsys):  # noqa: F811
    (tmp_path / "out").touch()
    flags = ["--checkpoint", tmp_path / "absent.ckpt", "--audio", SPEECH[0], "--output_dir", tmp_path / "out"]
    assert transcribe(capsys, *flags) == (2, [], f"inference.py: error: {tmp_path}/out: File exists\n")


def test_an_output_name_that_is_too_long_ends_nothing(checkpoint, tmp_path, capsys):  # noqa: F811
    """The other recordings are transcribed, and so is this one into the formats whose ending is shorter."""
    (tmp_path / "rec").mkdir()
    long = "n" * 251
    for name in (long, "z"):
        shutil.copy(SPEECH[0], tmp_path / "rec" / f"{name}.wav")
    path = tmp_path / "rec" / f"{long}.wav"
    status, _, error = transcribe(capsys, "--checkpoint", checkpoint, "--audio", tmp_path / "rec", "--output_dir",
                                  tmp_path / "out", "--output_format", "all")
    assert status == 1 and error.splitlines() == [
        f"inference.py: {path}: no .json of it: the name would be too long; rename the recording"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*(f"z.{kind}" for kind in ("json", "srt", "tsv", "txt", "vtt")),
         *(f"{long}.{kind}" for kind in ("srt", "tsv", "txt", "vtt"))])


def test_the_longest_names(checkpoint, tmp_path, capsys):  # noqa: F811
    """Of 255 bytes; and a tab in one makes no column of a table."""
    (tmp_path / "rec").mkdir()
    for name in ("é" * 125 + ".opus", "a\tb.opus"):
        shutil.copy(SPEECH[0], tmp_path / "rec" / name)
    flags = ["--checkpoint", checkpoint, "--audio", tmp_path / "rec", "--output_dir", tmp_path / "out"]
    assert transcribe(capsys, *flags, "--output_format", "all")[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == 10
    assert {line.count("\t") for line in (tmp_path / "out" / "a\tb.tsv").read_text().splitlines()} == {4}


def test_no_temporary_folder(checkpoint, monkeypatch, capsys):  # noqa: F811
    import tempfile

    def refuse(*_, **__):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    monkeypatch.setattr("sys.stdin", SPEECH[0].open())
    status, _, error = transcribe(capsys, "--checkpoint", checkpoint, "--audio", "-")
    assert (status, error) == (2, "inference.py: error: No usable temporary directory found in ['/tmp']\n")
    monkeypatch.setattr("sys.stdin", None)
    assert transcribe(capsys, "--checkpoint", checkpoint, "--audio", SPEECH[0])[0] == 0, "only pipes need one"


def test_names_that_the_output_cannot_encode(checkpoint, tmp_path):  # noqa: F811
    for name in ("café.opus", "b.opus"):
        shutil.copy(SPEECH[0], tmp_path / name)
    done = shell(f"inference --audio {tmp_path}", checkpoint, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "") and f"{tmp_path}/caf\\xe9.opus: " in done.stdout


def test_ctrl_c_ends_in_silence(checkpoint, tmp_path):  # noqa: F811
    soundfile.write(tmp_path / "long.wav", np.zeros(16_000 * 1800, dtype=np.int16), 16_000)
    command = [sys.executable, "inference.py", "--checkpoint", str(checkpoint), "--audio", str(SPEECH[0]),
               str(tmp_path / "long.wav"), "--batch_size", "1"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             preexec_fn=from_keyboard, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert child.stdout.readline().startswith(str(SPEECH[0]))
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130 and child.stderr.read() == ""


@pytest.mark.parametrize("source", ["ends", "goes on"])
def test_ctrl_c_ends_a_stream_with_all_its_words(tmp_path, source):
    """The recorder gets the same Ctrl-C; what it sent is read to its end, whether it closes the pipe or not."""
    network = causal_network(rnn_type="mingru")
    save(network, tmp_path / "x.ckpt")
    samples = (load_audio(SPEECH[0]).numpy() * 32_767).astype("<i2")
    expected, = greedy_texts(network, [torch.from_numpy(samples.astype(np.float32) / 32_768)])
    child = subprocess.Popen([sys.executable, "inference.py", "--checkpoint", str(tmp_path / "x.ckpt"), "--stream"],
                             cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             preexec_fn=from_keyboard, env={**os.environ, "OMP_NUM_THREADS": "1"})
    child.stdin.write(samples.tobytes())
    child.stdin.flush()
    said = child.stdout.read(1)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    if source == "ends":
        child.stdin.close()
    said += child.stdout.read()
    assert child.wait(30) == 130 and child.stderr.read() == b""
    assert said.decode().strip() == expected.strip()
