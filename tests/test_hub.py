"""Networks on the Hugging Face Hub, against a stand-in for it: uploaded, used by their address, and refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import CORPUS, ROOT, SPEECH, tiny_network
from hub_server import COMMIT, serving

import evaluate
import inference
import train
from models import Recognizer
from utils.checkpoint import __main__ as checkpoint_module
from utils.checkpoint.reading import read_checkpoint

huggingface_hub = pytest.importorskip("huggingface_hub", reason="requirements-export.txt is not installed")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, where the library looks for the Hub, with an empty cache and a token that may write."""
    with serving() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                            f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield server


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder: a checkpoint, and the error rates that a training leaves."""
    folder = tmp_path_factory.mktemp("run")
    network = tiny_network("mingru")
    torch.save({"recognizer": network.config, "epoch": 3,
                "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()}},
               folder / "best.ckpt")
    (folder / "results.json").write_text(json.dumps({"test-clean": {"wer": 0.0626, "cer": 0.0114, "words": 9}}))
    return folder


def push(run, *flags: str) -> None:
    checkpoint_module.main(["push", str(run / "best.ckpt"), "ann/tiny", *map(str, flags)])


def downloads(hub) -> list[str | None]:
    """The part of the weights that each download asked for, None for all."""
    return [part for method, path, part in hub.requests if method == "GET" and path.endswith("/model.safetensors")]


def leave(main, *argv, status: int = 2) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in argv])
    assert left.value.code == status


def test_a_network_goes_there_and_back(hub, run, capsys):
    """Weights, config and card; then it transcribes and evaluates by its address, downloaded once."""
    push(run, "--results", run / "results.json")
    assert capsys.readouterr().out == f"{hub.url}/ann/tiny\n"
    files = hub.files["ann/tiny"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads(files["config.json"]) == read_checkpoint(run / "best.ckpt")["recognizer"]
    leave(inference.main, "--checkpoint", run / "best.ckpt", "--audio", SPEECH[0], status=0)
    expected = capsys.readouterr().out
    for address in ("hf://ann/tiny", "hf://ann/tiny@main", f"hf://ann/tiny@{COMMIT}"):
        leave(inference.main, "--checkpoint", address, "--audio", SPEECH[0], status=0)
        assert capsys.readouterr().out == expected
    evaluate.main(["--checkpoint", "hf://ann/tiny", "--test_sets", "dev", "--data_root", str(CORPUS)])
    assert len(downloads(hub)) == 1
    weights = Recognizer.from_checkpoint("hf://ann/tiny").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in tiny_network("mingru").state_dict().items())


def test_the_card_states_the_error_rates(hub, run, tmp_path):
    """In the form that the Hub reads; those of a report by its systems; without any it says so."""
    push(run, "--results", run / "results.json")
    card = huggingface_hub.ModelCard(hub.files["ann/tiny"]["README.md"].decode())
    rates = {one.metric_type: (one.dataset_name, one.metric_value) for one in card.data.eval_results}
    assert rates == {"wer": ("test-clean", 6.26), "cer": ("test-clean", 1.14)}
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert "| test-clean | greedy | 6.26 | 1.14 |" in card.text
    rows = [{"system": system, "split": "dev", "wer": wer, "cer": 0.1} for system, wer in (("greedy", 0.5), ("b", 0.4))]
    (tmp_path / "report.json").write_text(json.dumps({"results": rows}))
    push(run, "--results", tmp_path / "report.json")
    assert "| dev | b | 40.00 | 10.00 |" in hub.files["ann/tiny"]["README.md"].decode()
    push(run)
    _, head, text = hub.files["ann/tiny"]["README.md"].decode().split("---\n", 2)
    assert "model-index" not in yaml.safe_load(head) and "No error rates" in text


def test_a_download_that_breaks_off_goes_on(hub, run, monkeypatch):
    """The second request asks for the rest alone."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1_000)
    push(run)
    hub.cut = 1
    assert read_checkpoint("hf://ann/tiny")["recognizer"]["model"] == "deepspeech2"
    half = len(hub.files["ann/tiny"]["model.safetensors"]) // 2
    assert downloads(hub) == [None, f"bytes={half - half % 1_000}-"]


def test_a_damaged_download_is_refused(hub, run, capsys):
    """And so is what is no network of this project."""
    hub.files["ann/tiny"] = {"model.safetensors": b"x" * 1000}
    leave(inference.main, "--checkpoint", "hf://ann/tiny", "--audio", SPEECH[0])
    line, = capsys.readouterr().err.splitlines()
    assert line.endswith("damaged, or no safetensors file (Error while deserializing header: header too large)")


def test_the_copy_in_the_cache_needs_no_network(hub, run, monkeypatch, capsys):
    push(run)
    network = read_checkpoint("hf://ann/tiny")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library tries for half a minute
    assert read_checkpoint("hf://ann/tiny")["recognizer"] == network["recognizer"]
    leave(inference.main, "--checkpoint", "hf://ann/other", "--audio", SPEECH[0])
    line, = capsys.readouterr().err.splitlines()
    assert line.endswith("hf://ann/other: http://127.0.0.1:9 cannot be reached, and there is no copy in the cache")


@pytest.mark.parametrize(("address", "reason"), [
    ("hf://ann/none", "the Hub has no such model, or it is private: log in by `hf auth login`"),
    ("hf://ann/tiny@v9", "the Hub has no such revision of it"),
    ("hf://ann/empty", "not a network of this project: it lacks the file of its weights"),
    ("hf://tiny", "must be hf://user/name or hf://user/name@revision"),
    ("hf://ann/tiny/x.ckpt", "must be hf://user/name or hf://user/name@revision"),
    ("hf://ann/ti--ny", "ann/ti--ny"),
])
def test_addresses_that_lead_nowhere(hub, run, capsys, tmp_path, address, reason):
    """One line, whichever program is asked."""
    push(run)
    hub.files["ann/empty"] = {}
    capsys.readouterr()
    for main, flags in ((inference.main, ["--audio", SPEECH[0]]),
                        (evaluate.main, ["--data_root", CORPUS, "--test_sets", "dev"])):
        leave(main, "--checkpoint", address, *flags)
        line, = capsys.readouterr().err.splitlines()
        assert f"error: {address}: " in line and reason in line, line


def test_the_hub_has_troubles_of_its_own(hub, run, capsys, monkeypatch):
    push(run)
    capsys.readouterr()
    hub.status = 403
    leave(checkpoint_module.main, "flags", "hf://ann/tiny")
    assert "hf://ann/tiny: " in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    leave(checkpoint_module.main, "push", run / "best.ckpt", "ann/tiny")
    line, = capsys.readouterr().err.splitlines()
    assert line.endswith("ann/tiny: log in by `hf auth login`, with a token that may write")
    leave(checkpoint_module.main, "push", run / "best.ckpt", "tiny")
    assert capsys.readouterr().err.rstrip().endswith("tiny: must be user/name, as the Hub is to call it")
    for content, name in (("{", "bad.json"), ("[1]", "list.json"), ('{"test": {}}', "keys.json")):
        (run / name).write_text(content)
        leave(checkpoint_module.main, "push", run / "best.ckpt", "ann/tiny", "--results", run / name)
        assert "neither results.json of train.py nor report.json" in capsys.readouterr().err


def test_no_run_goes_on_from_there_but_a_new_one_begins(hub, run, capsys, tmp_path):
    push(run)
    capsys.readouterr()
    leave(train.main, "--checkpoint_path", "hf://ann/tiny", "--output_dir", tmp_path / "run", "--data_root", CORPUS,
          "--train_sets", "train", "--val_sets", "dev", "--test_sets", "test")
    assert "holds weights alone" in capsys.readouterr().err


def test_without_the_library(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    leave(inference.main, "--checkpoint", "hf://ann/tiny", "--audio", SPEECH[0])
    line, = capsys.readouterr().err.splitlines()
    assert line.endswith("hf:// needs huggingface_hub: pip install -r requirements-export.txt")


def test_the_environment_says_where_the_hub_is(hub, run, tmp_path):
    """HF_ENDPOINT and HF_HOME, as the library has them."""
    push(run)
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-m", "utils.checkpoint", "flags", "hf://ann/tiny"], cwd=ROOT,
                          capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0 and "model: deepspeech2" in done.stdout, done.stderr
