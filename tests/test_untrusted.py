"""Files from strangers that state or name what they should not: refused in one line, in little memory and time."""

import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import CORPUS, ROOT, SPEECH, TINY, tiny_network
from little_memory import in_little_memory
from test_ngram import ARPA

import inference
import train
import utils.audio
import utils.files.compressed
from data.index import DataError, build_index
from data.readers import librispeech, manifest
from utils.audio import AudioError, load_audio, probe_seconds, read_windows, resample
from utils.errors import UsageError
from utils.lm.ngram import LanguageModelError, NGram
from utils.lm.text import read_sentences
from utils.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()


def one_line(error: pytest.ExceptionInfo, path) -> None:
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 400


# -- sound -----------------------------------------------------------------------------------------


def wav(rate: int = 16_000, channels: int = 1, samples: bytes = bytes(64), size: int | None = None) -> bytes:
    """A WAV of 16-bit samples with any header."""
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 & 0xFFFF_FFFF, channels * 2 & 0xFFFF, 16)
    size = len(samples) if size is None else size
    return (b"RIFF" + struct.pack("<I", 36 + size & 0xFFFF_FFFF) + b"WAVEfmt " + struct.pack("<I", 16) + form
            + b"data" + struct.pack("<I", size) + samples)


def flac(frames: int) -> bytes:
    """A second of a voice whose header states another number of samples, up to 2 ** 36 - 1."""
    file = io.BytesIO()
    soundfile.write(file, load_audio(SPEECH[0])[:16_000].numpy(), 16_000, format="FLAC")
    data = bytearray(file.getvalue())
    data[21] = data[21] & 0xF0 | frames >> 32
    struct.pack_into(">I", data, 22, frames & 0xFFFF_FFFF)
    return bytes(data)


def vorbis(frames: int) -> bytes:
    """A second of a voice whose last page states that it ends at another sample."""
    from mutation import ogg_checksums

    file = io.BytesIO()
    soundfile.write(file, load_audio(SPEECH[0])[:16_000].numpy(), 16_000, format="OGG")
    data = bytearray(file.getvalue())
    struct.pack_into("<Q", data, data.rfind(b"OggS") + 6, frames)
    return ogg_checksums(bytes(data))


def rf64(stated: int) -> bytes:
    """An RF64 whose `data` chunk states a size of its own; libsndfile's log then has it in another notation."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000, np.int16), 16_000, format="RF64", subtype="PCM_16")
    data = bytearray(file.getvalue())
    struct.pack_into("<I", data, data.find(b"data") + 4, stated)
    return bytes(data)


LYING = {
    "FLAC of 68 billion samples": flac((1 << 36) - 1), "FLAC of 4 billion samples": flac(1 << 32),
    "FLAC of 100 million samples": flac(10**8), "Vorbis of 2 ** 62 samples": vorbis(1 << 62),
    "Vorbis of a billion samples": vorbis(10**9), "65,535 channels": wav(channels=65_535),
    "1,024 channels, cut": wav(channels=1024, size=1 << 30), "2 GHz": wav(rate=1 << 31),
    "4 GHz": wav(rate=0xFFFF_FFFF), "1 Hz": wav(rate=1), "0 Hz": wav(rate=0), "no channels": wav(channels=0),
}


@pytest.mark.parametrize("kind", LYING)
def test_a_header_takes_no_memory(tmp_path, kind):
    path = tmp_path / "x.wav"
    path.write_bytes(LYING[kind])

    def read():
        for once in (load_audio, lambda path: list(read_windows(path, step=30, overlap=6))):
            with pytest.raises(AudioError) as error:
                once(path)
            one_line(error, path)
        index = build_index("x", *manifest_of(tmp_path, path), TOKENIZER, tmp_path / "cache")
        assert [u.audio for u in index.utterances] == [str(SPEECH[0])] and "1 with bad audio or" not in str(index)

    in_little_memory(read)


def manifest_of(folder: Path, *paths) -> tuple:
    """The entries of a manifest that names these files, and one that is good."""
    file = folder / "x.jsonl"
    rows = [{"audio": str(path), "text": "he did not"} for path in (SPEECH[0], *paths)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest.list_entries(file)


def test_many_channels_are_read_in_little_memory(tmp_path):
    """Of 1,024 channels, 10 s: 330 MB of float32 if it were read as one."""
    path = tmp_path / "x.wav"
    with path.open("wb") as file:
        file.write(wav(rate=8000, channels=1024, samples=b"", size=10 * 8000 * 2048))
        file.truncate(file.tell() + 10 * 8000 * 2048)  # zeros that take no place on the disk
    in_little_memory(lambda: load_audio(path), megabytes=100)


def test_rates_with_little_in_common_take_no_gigabytes(tmp_path):
    """And sound like those that do: torchaudio's table of weights would have 5 GB."""
    speech = load_audio(SPEECH[0])
    soundfile.write(tmp_path / "x.wav", resample(speech, 16_000, 44_100).numpy(), 44_101, subtype="FLOAT")
    in_little_memory(lambda: load_audio(tmp_path / "x.wav"))
    odd = load_audio(tmp_path / "x.wav")
    assert abs(len(odd) - len(speech)) <= 2
    assert (odd[:16_000] - speech[:16_000]).norm() < 0.05 * speech[:16_000].norm()  # 23 microseconds early at a second
    for rate in (8_000, 22_050, 44_100, 48_000):
        wave = torch.randn(2, rate // 4, generator=torch.Generator().manual_seed(0))
        direct = utils.audio._resample_directly(wave, rate, 16_000)
        torch.testing.assert_close(direct, resample(wave, rate, 16_000), atol=2e-4, rtol=0)


def test_more_than_can_be_read_as_one_is_read_in_windows(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "x.flac", np.zeros(50_000), 16_000)
    monkeypatch.setattr(utils.audio, "MOST_SAMPLES", 40_000)
    with pytest.raises(AudioError, match="50,000 samples are too long to be read as one: cut it"):
        load_audio(tmp_path / "x.flac")
    assert sum(map(len, read_windows(tmp_path / "x.flac", step=1))) == 50_000


def test_an_hour_is_no_utterance(tmp_path, monkeypatch):
    monkeypatch.setattr("data.index.LONGEST", 0.5)
    with pytest.raises(DataError, match="1 with bad audio: longer than an hour"):
        build_index("x", *manifest_of(tmp_path), TOKENIZER, tmp_path / "cache")


def test_a_damaged_mp3_whose_end_lies_beyond_its_end(tmp_path):
    """Found by fuzz.py: libsndfile then stands behind the last sample, and soundfile asks for a negative number."""
    file = io.BytesIO()
    soundfile.write(file, load_audio(SPEECH[0])[:16_000].numpy(), 16_000, format="MP3")
    for at in range(0, len(file.getvalue()), 97):
        data = bytearray(file.getvalue())
        del data[at : at + 40]
        (tmp_path / "x.mp3").write_bytes(data)
        for read in (probe_seconds, load_audio):
            try:
                read(tmp_path / "x.mp3")
            except AudioError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("stated", [0xFF_FFFF, 1, 0x7FFF_FFFF])
def test_an_rf64_whose_data_chunk_states_its_own_size(tmp_path, stated):
    """Found by fuzz.py: libsndfile's log has the size as a hexadecimal number then."""
    (tmp_path / "x.wav").write_bytes(rf64(stated))
    for read in (probe_seconds, load_audio):
        try:
            read(tmp_path / "x.wav")
        except AudioError as error:
            one_line(pytest.ExceptionInfo.from_exception(error), tmp_path / "x.wav")


# -- names in manifests, and what stands in folders ------------------------------------------------


@pytest.fixture
def pipe(tmp_path) -> Path:
    """A named pipe that nobody writes to: opening it would wait for ever."""
    os.mkfifo(tmp_path / "pipe.wav")
    return tmp_path / "pipe.wav"


@pytest.mark.parametrize(("name", "reason"), [
    ("/dev/zero", "not a file"), ("/dev/stdin", "not a file"), ("/dev/fd/0", "not a file"), ("pipe.wav", "not a file"),
    ("/proc/self/environ", "0 bytes"), ("/etc", "not a file"), (".", "not a file"), ("", "not a file"),
    ("http://127.0.0.1/a.wav", "no such file"), ("file:///etc/passwd", "no such file"), ("~/a.wav", "no such file"),
    ("a\0.wav", "no such file"), ("/etc/passwd", "not audio"), ("-", "no such file"), ("| ls", "no such file")])
def test_a_manifest_names_regular_files_alone(tmp_path, pipe, name, reason, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    entries, faults = manifest_of(tmp_path, name)
    index = build_index("x", entries, faults, TOKENIZER, tmp_path / "cache")
    assert len(index.utterances) == 1
    (kind, _), = index.left_out.items()
    assert kind.startswith("with bad audio: ") and reason in kind and "root:" not in str(index)


def test_a_manifest_may_name_files_anywhere(tmp_path):
    """By an absolute path, out of its folder, and through a link: corpora live anywhere."""
    shutil.copy(SPEECH[1], tmp_path / "a.opus")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.opus").symlink_to(SPEECH[2])
    entries, faults = manifest_of(tmp_path / "in", "../a.opus", "link.opus")
    assert len(build_index("x", entries, faults, TOKENIZER, tmp_path / "cache").utterances) == 3


@pytest.mark.parametrize(("line", "reason"), [
    ('{"audio": "a\\ud800.wav", "text": "a"}', "surrogates"), ('{"audio": "a.wav", "text": "\\udfff"}', "surrogates"),
    ('{"audio": "a.wav", "text": "a", "id": ["\\ud800"]}', ""), ('{"a": ' * 50_000, ""), ("9" * 5000, ""),
    ('{"audio": "a.wav", "text": "a", "id": ' + "[" * 5000 + "]" * 5000 + "}", "")], ids=lambda value: value[:40])
def test_a_hostile_line_of_a_manifest(tmp_path, line, reason):
    file = tmp_path / "x.jsonl"
    file.write_text(line + "\n" + json.dumps({"audio": str(SPEECH[0]), "text": "he did not"}) + "\n")
    entries, faults = manifest.list_entries(file)
    fault, = faults["with a bad manifest line"] or [""]
    assert len(entries) == (1 if fault else 2) and fault.isprintable() and len(fault) < 300
    assert reason in fault
    str(build_index("x", entries, faults, TOKENIZER, tmp_path / "cache")).encode()


def test_an_endless_line_is_passed_over_in_little_memory(tmp_path):
    file = tmp_path / "x.jsonl"
    row = json.dumps({"audio": str(SPEECH[0]), "text": "he did not"}).encode()
    with file.open("wb") as opened:
        opened.write(row + b'\n{"audio": "')
        opened.truncate(1 << 28)  # 256 MB
        opened.seek(1 << 28)
        opened.write(b"\n" + row + b"\n")

    def read():
        entries, faults = manifest.list_entries(file)
        assert len(entries) == 2 and faults == {"with a bad manifest line": ["line 2: longer than 1 MB"]}

    in_little_memory(read, megabytes=50)


@pytest.mark.parametrize("name", ["/dev/zero", "pipe.wav"])
def test_a_manifest_that_is_no_file(tmp_path, pipe, name):
    (tmp_path / "x.jsonl").symlink_to(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read as a JSON-lines manifest"):
        in_time(lambda: manifest.list_entries(tmp_path / "x.jsonl"))


def in_time(work):
    """What comes of it, after a process of its own has shown that it neither waits nor takes much."""

    def tried():
        with suppress(ValueError):
            work()

    in_little_memory(tried)
    return work()


def test_names_that_would_command_a_terminal(tmp_path):
    """A line end or an escape in the name of a file is shown as such."""
    index = build_index("x", *manifest_of(tmp_path, "a\nb.wav", "\x1b[2J.wav"), TOKENIZER, tmp_path / "cache")
    assert str(index).isprintable() and "a\\nb.wav" in str(index) and "\\x1b[2J" in str(index)
    with pytest.raises(AudioError) as error:
        load_audio(tmp_path / "a\nb.wav")
    assert str(error.value) == f"{tmp_path}/a\\nb.wav: no such file"


def test_what_may_stand_in_a_folder(tmp_path, capsys):
    """A link to sound is read; a pipe, a device and a folder by such names are left out, and nothing waits."""
    corpus = Path(shutil.copytree(CORPUS / "dev", tmp_path / "dev"))
    chapter = corpus / "9001" / "3"
    audio, = chapter.glob("*.opus")
    (tmp_path / "elsewhere.opus").write_bytes(audio.read_bytes())
    audio.unlink()
    audio.symlink_to(tmp_path / "elsewhere.opus")
    (chapter / "9001-3.trans.txt").open("a").write("9001-3-1 a\n9001-3-2 a\n9001-3-3 a\n")
    os.mkfifo(chapter / "9001-3-1.wav")
    (chapter / "9001-3-2.wav").symlink_to("/dev/zero")
    (chapter / "9001-3-3.wav").mkdir()
    (corpus / "9001" / "6").mkdir()
    os.mkfifo(corpus / "9001" / "6" / "9001-6.trans.txt")
    (corpus / "9001" / "9").symlink_to(corpus)  # a loop

    def read():
        index = build_index("dev", *librispeech.list_entries(corpus), TOKENIZER, tmp_path / "cache")
        assert len(index.utterances) == 5
        assert {kind: len(rows) for kind, rows in index.left_out.items()} == {
            "in an unreadable transcript": 1, "with bad audio: not a file": 3}

    in_little_memory(read)
    network = tiny_network("mingru")
    torch.save({"recognizer": network.config,
                "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()}},
               tmp_path / "x.ckpt")

    def transcribe():
        with pytest.raises(SystemExit) as leave:
            inference.main(["--checkpoint", str(tmp_path / "x.ckpt"), "--audio", str(corpus), "--output_dir",
                            str(tmp_path / "out")])
        assert leave.value.code == 1 and len(list((tmp_path / "out").iterdir())) == 5

    in_little_memory(transcribe, megabytes=1000)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": NaN}', '{"a": -1.0}', '{"a": 1e300}'])
def test_a_cache_of_durations_from_a_stranger(tmp_path, content):
    from data.index import _read_cache

    (tmp_path / "x.json").write_text(content)
    assert _read_cache(tmp_path / "x.json") == {}


# -- language models -------------------------------------------------------------------------------


def test_a_packed_language_model_that_unpacks_to_too_much(tmp_path, monkeypatch):
    """A megabyte of zeros packs to a kilobyte; honest text packs 3 to 30 fold, or is small."""
    monkeypatch.setattr(utils.files.compressed, "FREE", 1 << 20)
    path = tmp_path / "x.arpa.gz"
    path.write_bytes(gzip.compress(ARPA.encode() + bytes(8 << 20)))
    with pytest.raises(LanguageModelError, match=r"cannot be read \(unpacks to more than 1 MB") as error:
        in_time(lambda: NGram(path, TOKENIZER))
    one_line(error, path)
    path.write_bytes(gzip.compress(ARPA.encode() + b"\n" * (1 << 19)))
    assert NGram(path, TOKENIZER).model.order == 2


def test_a_packed_text_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(utils.files.compressed, "FREE", 1 << 20)
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress((b"see the sea " * 1000 + b"\n") * 700))
    with pytest.raises(UsageError, match=f"--text {path}: unpacks to more than"):
        in_time(lambda: sum(1 for _ in read_sentences([str(path)], CharTokenizer())))


@pytest.mark.parametrize("packed", [True, False])
def test_an_endless_line_of_a_language_model(tmp_path, packed):
    path = tmp_path / "x.arpa"
    content = ARPA.replace("-0.4\tsea", "-0.4\t" + "x" * (60 << 20)).encode()
    path.write_bytes(gzip.compress(content, 1) if packed else content)

    def read():
        with pytest.raises(LanguageModelError) as error:
            NGram(path, TOKENIZER)
        one_line(error, path)

    in_little_memory(read, megabytes=120)


@pytest.mark.parametrize("count", [999_999_999, 999_999_999_999_999])
@pytest.mark.parametrize("order", [1, 2])
def test_n_grams_that_are_only_stated(tmp_path, order, count):
    """KenLM takes memory for what the header states before it reads."""
    path = tmp_path / "x.arpa"
    path.write_text(ARPA.replace(f"ngram {order}={(5, 3)[order - 1]}", f"ngram {order}={count}"))

    def read():
        with pytest.raises(LanguageModelError, match="header says") as error:
            NGram(path, TOKENIZER)
        one_line(error, path)

    in_little_memory(read)


# -- YAML ------------------------------------------------------------------------------------------

LAUGHS = "speed_perturb:\n- &a [x, x]\n" + "".join(f"- &{chr(i)} [*{chr(i - 1)}, *{chr(i - 1)}]\n"
                                                  for i in range(98, 123))  # of which a message would show all
YAML = {
    "billion laughs": LAUGHS, "merges": "a: &a {b: 1}\nc:\n  <<: *a\n", "itself": "a: &a [*a]",
    "deep": "a: " + "[" * 5000, "large": "a: " + "x" * 100_000,
    "code": "a: !!python/object/apply:os.system [exit]", "no truth": "epochs: !!bool 7",
    "no date": "epochs: 2001-13-45", "no number": "epochs: !!int abc", "many digits": "epochs: " + "9" * 5000,
    "hexadecimal": "epochs: 0x" + "f" * 5000, "zero byte": 'data_root: "a\\0b"',
    "half a character": 'data_root: "\\ud800"', "line end in a key": '"a\\nb": 1', "escape in a key": '"\\e[2J": 1',
    "no UTF-8": b"a: \xff",
}


@pytest.mark.parametrize("kind", YAML)
def test_hostile_yaml(tmp_path, kind):
    path = tmp_path / "x.yaml"
    path.write_bytes(YAML[kind] if isinstance(YAML[kind], bytes) else YAML[kind].encode())

    def read():
        with pytest.raises(UsageError) as error:
            train.parse_arguments(["--config", str(path)])
        one_line(error, path)
        assert str(error.value).isprintable()

    in_little_memory(read)


def test_an_endless_config():
    with pytest.raises(UsageError, match="/dev/zero: not a file"):
        in_time(lambda: train.parse_arguments(["--config", "/dev/zero"]))


# -- secrets ---------------------------------------------------------------------------------------

SECRETS = {"COMET_API_KEY": "comet-secret-0123456789abcdef", "AWS_SECRET_ACCESS_KEY": "aws-secret-0123456789abcdef",
           "HF_TOKEN": "hf-secret-0123456789abcdef", "MY_PASSWORD": "password-secret-0123456789"}


@pytest.mark.parametrize("logger", ["comet", pytest.param("tensorboard", marks=pytest.mark.long)])
def test_what_env_holds_reaches_no_file(tmp_path, logger):
    """A real run with a `.env`; then everything that it wrote and said is searched, in archives too."""
    values = {**SECRETS, "COMET_URL_OVERRIDE": "http://127.0.0.1:9/clientlib/"}  # nobody listens there
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    code = f"import train; train.__file__ = {str(tmp_path / 'train.py')!r}; train.main()"
    small = [f"--{name}={value}" for name, value in TINY["deepspeech2"].items()]
    command = [sys.executable, "-c", code, *small, "--data_root", str(CORPUS), "--train_sets", "train", "--val_sets",
               "dev", "--test_sets", "test", "-g", "0", "-w", "0", "--epochs", "1", "--limit_train_batches", "1",
               "--logger", logger, "--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COMET_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    written = [done.stdout.encode(), done.stderr.encode(), *contents(tmp_path / "run")]
    assert len(written) > 8 and any(b"rnn_size" in content for content in written)
    if logger == "comet":
        assert list((tmp_path / "run").rglob("*.zip")), "the run has an archive, or this test looks at little"
    for name, value in SECRETS.items():
        assert not [content[:200] for content in written if value.encode() in content], name


def contents(folder: Path) -> list[bytes]:
    """Of all files, and of the members of archives."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            found.append(path.read_bytes())
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    found += map(archive.read, archive.namelist())
    return found
