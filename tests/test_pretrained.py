"""Networks by name: found, used with their own n-gram, refused in one line, stored in half the bytes, as shipped."""

import hashlib
import io
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import CORPUS, ROOT, SPEECH
from test_inference import transcribe
from test_streaming import causal_network
from test_transfer import OTHER_ORDER, build, save, taken
from test_untrusted_checkpoints import last_line
from training_runs import arguments

import evaluate
import inference
import train
from models import Recognizer, Transcriber
from models.transfer import take_weights
from utils.audio import load_audio
from utils.checkpoint import __main__ as checkpoint_module
from utils.checkpoint import pretrained
from utils.checkpoint.__main__ import export
from utils.checkpoint.reading import CheckpointError, find_checkpoint
from utils.metrics import count_errors

ARPA = """
\\data\\
ngram 1=4
ngram 2=1

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>
-2.0\t<unk>
-0.4\ta\t-0.3

\\2-grams:
-0.1\ta a

\\end\\
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of two networks, one of which has an n-gram and weights for it, and of one without weights."""
    folder = tmp_path / "pretrained"
    for name, network in (("english", build(seed=0)), ("english-streaming", causal_network(rnn_type="mingru"))):
        (folder / name).mkdir(parents=True)
        export([save(network, tmp_path / "x.ckpt")], folder / name / "model.safetensors", torch.float16)
    (folder / "english" / "lm.arpa").write_text(ARPA)
    (folder / "english" / "lm.arpa").rename(folder / "english" / "lm.bin")  # KenLM looks at the content
    (folder / "english" / "decoding.yaml").write_text("decoder: beam\nlm: data/lm/x.arpa\nalpha: 0.25\nbeta: 2.5\n")
    (folder / "empty").mkdir()
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def inference_flags(*argv: str):
    return inference.parse_arguments([*argv, "--audio", "x.wav"])


def test_a_name_stands_for_the_weights(folder):
    path = folder / "english" / "model.safetensors"
    assert find_checkpoint("english") == path
    network = Recognizer.from_checkpoint("english")
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert Transcriber("english").transcribe(SPEECH[0]) == Transcriber(path).transcribe(SPEECH[0])


def test_a_file_that_exists_wins(folder, tmp_path):
    (tmp_path / "english-streaming").mkdir()
    assert find_checkpoint("english-streaming").parent == folder / "english-streaming", "a folder is no checkpoint"
    save(build(rnn_layers=1), tmp_path / "english")
    assert find_checkpoint("english") == Path("english")
    assert Recognizer.from_checkpoint("english").config["rnn_layers"] == 1
    assert inference_flags("--checkpoint", "english", "--decoder", "beam").lm is None


@pytest.mark.parametrize(("name", "message"), [
    ("english-us", "english-us: no such checkpoint file; the pretrained networks are: english, english-streaming"),
    ("empty", "pretrained/empty/model.safetensors: no such checkpoint file; the pretrained networks are: english, "),
    ("..", "..: no such checkpoint file; the pretrained networks are: english"),
    ("runs/x/best.ckpt", "runs/x/best.ckpt: no such checkpoint file"),
    ("best.ckpt", "best.ckpt: no such checkpoint file"),
])
def test_an_unknown_name_is_refused(folder, capsys, name, message):
    """With the names that there are, unless it looks like a path; the same words from every program."""
    runs = [(inference.main, ["--checkpoint", name, "--audio", str(SPEECH[0])]),
            (evaluate.main, ["--checkpoint", name, "--data_root", str(CORPUS), "--test_sets", "dev"]),
            (train.main, arguments(folder.parent / "run", "--init_from", name))]
    for main, flags in runs:
        line = last_line(capsys, main, flags)
        assert message in line and ("pretrained networks" in message) == ("pretrained networks" in line)


def test_no_network_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "none")
    with pytest.raises(CheckpointError, match="english: no such checkpoint file; the pretrained networks are: none$"):
        find_checkpoint("english")


# -- inference.py and evaluate.py ------------------------------------------------------------------


def test_without_a_checkpoint_the_first_network_transcribes(folder, capsys):
    status, lines, errors = transcribe(capsys, "--audio", SPEECH[0])
    assert (status, errors) == (0, "inference.py: no --checkpoint, so the pretrained network english is used\n")
    assert transcribe(capsys, "--checkpoint", "english", "--audio", SPEECH[0]) == (0, lines, "")


def test_without_a_checkpoint_a_stream_has_its_own_network(folder, capsys, monkeypatch):
    sound = io.BytesIO()
    soundfile.write(sound, load_audio(SPEECH[0]).numpy(), 16_000, format="WAV")
    monkeypatch.setattr("inference.interruptible_input", lambda: nullcontext(io.BytesIO(sound.getvalue())))
    status, lines, errors = transcribe(capsys, "--stream")
    assert (status, errors) == (0, "inference.py: no --checkpoint, so the pretrained network english-streaming is "
                                   "used\n")
    assert lines == [Transcriber("english-streaming").transcribe(SPEECH[0]).text]


def test_beam_search_has_the_networks_own_ngram(folder):
    """And the weights tuned for it, over which a config and the command line win; another n-gram has none of them."""
    own = str(folder / "english" / "lm.bin")
    for args in (inference_flags("--decoder", "beam"), inference_flags("--checkpoint", "english", "--decoder", "beam")):
        assert (args.lm, args.alpha, args.beta, args.checkpoint) == (own, 0.25, 2.5, "english")
    Path("mine.yaml").write_text("decoder: beam\nalpha: 0.75\n")
    args = inference_flags("--config", "mine.yaml", "--beta", "1.25")
    assert (args.lm, args.alpha, args.beta) == (own, 0.75, 1.25)
    args = inference_flags("--decoder", "beam", "--lm", "mine.arpa")
    assert (args.lm, args.alpha, args.beta) == ("mine.arpa", 0.5, 1.0)
    args = inference_flags()
    assert (args.decoder, args.lm, args.alpha) == ("greedy", None, 0.5)
    args = inference_flags("--checkpoint", "english-streaming", "--decoder", "beam")
    assert (args.lm, args.alpha) == (None, 0.5), "it has no n-gram"
    args = evaluate.parse_arguments(["--checkpoint", "english", "--decoder", "beam", "--alpha", "0"])
    assert (args.lm, args.alpha, args.beta) == (own, 0.0, 2.5)
    args = evaluate.parse_arguments(["--checkpoint", "english", "english-streaming", "--decoder", "beam"])
    assert args.lm is None, "one way of decoding for both"


def test_packed_ngrams_and_flags_that_are_wrong(folder, capsys):
    (folder / "english-streaming" / "lm.arpa.gz").write_bytes(b"")
    args = inference_flags("--checkpoint", "english-streaming", "--decoder", "beam")
    assert (Path(args.lm).name, args.alpha) == ("lm.arpa.gz", 0.5), "nothing was tuned for it"
    (folder / "english" / "decoding.yaml").write_text("alfa: 1\n")
    line = last_line(capsys, inference.main, ["--decoder", "beam", "--audio", "x.wav"])
    assert "english/decoding.yaml: alfa: no such flag" in line


def test_beam_search_runs_with_it(folder, capsys):
    pytest.importorskip("kenlm")
    status, lines, errors = transcribe(capsys, "--decoder", "beam", "--audio", SPEECH[0])
    assert (status, len(lines)) == (0, 1) and errors.count("\n") == 1
    evaluate.main(["--checkpoint", "english", "--decoder", "beam", "--data_root", str(CORPUS), "--test_sets", "dev",
                   "-w", "0", "--limit", "1", "--cache_dir", "cache"])
    assert "beam 32 + lm.bin" in capsys.readouterr().out


# -- train.py --------------------------------------------------------------------------------------


def test_a_run_begins_with_a_network_by_name(folder, capsys):
    train.main(arguments(folder.parent / "run", "--init_from", "english", "--epochs", "1", "--test_sets"))
    assert "english: 14 of 14 layers taken\n" in capsys.readouterr().out


def test_no_run_goes_on_from_it(folder, capsys):
    line = last_line(capsys, train.main, arguments(folder.parent / "run", "--checkpoint_path", "english"))
    assert "english/model.safetensors: holds weights alone" in line


# -- export ----------------------------------------------------------------------------------------


def test_half_precision_halves_the_file(tmp_path, capsys):
    """Matrices are float16 there and float32 in the network; vectors keep every bit."""
    network = build(rnn_size=64, feature_norm="global")
    network.features.mean.fill_(1 / 3)
    source, target = save(network, tmp_path / "x.ckpt"), tmp_path / "half.safetensors"
    checkpoint_module.main(["export", str(source), str(target), "--dtype", "float16"])
    assert re.fullmatch(rf"{target}: 0\.\d MB, from {source} of 0\.\d MB\n", capsys.readouterr().out)
    assert 0.5 < target.stat().st_size / source.stat().st_size < 0.6
    loaded = Recognizer.from_checkpoint(target).state_dict()
    for name, value in network.state_dict().items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value.half().float() if value.dim() > 1 else value), name
    fresh = build(rnn_size=64, feature_norm="global", seed=2)
    take_weights(fresh, target)
    assert taken(fresh, save(Recognizer.from_checkpoint(target), tmp_path / "y.ckpt")) == set(loaded)


def test_the_mean_of_several_checkpoints(tmp_path, capsys):
    networks = [build(rnn_size=64, seed=seed) for seed in (1, 2)]
    sources = [save(network, tmp_path / f"{i}.ckpt") for i, network in enumerate(networks)]
    target = tmp_path / "mean.safetensors"
    checkpoint_module.main(["export", *map(str, sources), str(target)])
    assert re.fullmatch(rf"{target}: 0\.\d MB, from {sources[0]} of 0\.\d MB, {sources[1]} of 0\.\d MB\n",
                        capsys.readouterr().out)
    loaded, (first, second) = Recognizer.from_checkpoint(target).state_dict(), (one.state_dict() for one in networks)
    for name, value in loaded.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2, rtol=1e-6, atol=1e-7)
    other = save(build(rnn_size=32), tmp_path / "other.ckpt")
    line = last_line(capsys, checkpoint_module.main, ["export", str(sources[0]), str(other), str(target)])
    assert "holds another network than" in line and "rnn_size" in line


def test_a_weight_that_float16_cannot_hold_is_named(tmp_path, capsys):
    network = build()
    network.project.weight.data[0, 0] = 70_000
    source = save(network, tmp_path / "x.ckpt")
    line = last_line(capsys, checkpoint_module.main, ["export", str(source), str(tmp_path / "x.safetensors"),
                                                      "--dtype", "float16"])
    assert f"{source}: project.weight holds 70000, too much for float16" in line
    assert not (tmp_path / "x.safetensors").exists()


def test_the_flags_of_a_network_build_it_again(tmp_path, capsys):
    """Every option, through a YAML file, but for the subwords, which `--init_from` brings."""
    network = build("conformer", alphabet=OTHER_ORDER, feature_norm="none", window_ms=20.0)
    checkpoint_module.main(["flags", str(save(network, tmp_path / "x.ckpt"))])
    (tmp_path / "x.yaml").write_text(capsys.readouterr().out)
    args = train.parse_arguments(["--config", str(tmp_path / "x.yaml")])
    assert train.build_network(args, saved={}).config == network.config
    assert "no such checkpoint" in last_line(capsys, checkpoint_module.main, ["flags", "x.ckpt"])


# -- what ships ------------------------------------------------------------------------------------

SHIPPED = sorted(path.parent.name for path in (ROOT / "pretrained").glob("*/model.safetensors"))
needs_networks = pytest.mark.skipif(len(SHIPPED) < 2, reason="no pretrained/*/model.safetensors of both networks yet")


@needs_networks
def test_every_shipped_file_is_the_one_that_was_made():
    """`sha256sum */model.safetensors */lm.*` in pretrained/ writes the list."""
    stated = dict(reversed(line.split("  ")) for line in (ROOT / "pretrained" / "SHA256SUMS").read_text().splitlines())
    files = [path for pattern in ("*/model.safetensors", "*/lm.*") for path in (ROOT / "pretrained").glob(pattern)]
    found = {path.relative_to(ROOT / "pretrained").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
             for path in files}
    assert found == stated


@needs_networks
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_is_whole(name):
    """It transcribes, has a model card, and the flags that were tuned for it are flags."""
    network = Recognizer.from_checkpoint(name)
    assert isinstance(Transcriber(network).transcribe(np.zeros(16_000, dtype=np.float32)).text, str)
    assert len((ROOT / "pretrained" / name / "README.md").read_text(encoding="utf-8")) > 500
    assert inference_flags("--checkpoint", name, "--decoder", "beam").decoder == "beam"


@needs_networks
@pytest.mark.parametrize(("name", "bound"), [("english", 0.18), ("english-streaming", 0.36)])
def test_the_networks_for_english_write_what_is_said(name, bound):
    """15 % and 31 % of the characters of these recordings are wrong; of a network that guesses, three quarters."""
    lines = [line.split(" ", 1) for path in (ROOT / "tests" / "corpus").rglob("*.trans.txt")
             for line in path.read_text().splitlines()]
    texts = {key: text.lower() for key, text in lines}
    transcriber = Transcriber(name)
    found = [transcriber.transcribe(path).text for path in SPEECH]
    assert count_errors([texts[path.stem] for path in SPEECH], found).cer < bound


@needs_networks
def test_the_streaming_network_streams():
    assert Recognizer.from_checkpoint(pretrained.STREAMING).streaming_encoder()
