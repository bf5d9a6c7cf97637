"""Comet: one experiment a run, continued; and a server that refuses, hangs or dies."""

import json
import time
import zipfile
from pathlib import Path

import pytest
from comet_server import comet_server
from training_runs import arguments, run_together, start, wait_for

import train
from utils.training.comet import SETTINGS, start_comet
from utils.training.loggers import close_logger

LOGGED = ["--logger", "comet", "--log_every", "1", "--checkpoint_path", "auto"]


@pytest.fixture(autouse=True)
def no_account(monkeypatch):
    """No key of whoever runs the tests, from .env either, and no setting of an earlier test."""
    for name in {"COMET_URL_OVERRIDE", "COMET_START_ONLINE", *SETTINGS}:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("COMET_API_KEY", "")


@pytest.fixture
def server(monkeypatch):
    """A server that the runs of a test log to."""
    with comet_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def archives(output: Path) -> list[Path]:
    return sorted((output / "comet").glob("*.zip"), key=lambda path: path.stat().st_mtime_ns)


def contents(archive: Path) -> tuple[dict, list[dict]]:
    """Metadata and messages."""
    with zipfile.ZipFile(archive) as pack:
        messages = [json.loads(line)["payload"] for line in pack.read("messages.json").splitlines()]
        assert all(pack.getinfo(message["file_path"]).file_size for message in messages if "file_path" in message)
        return json.loads(pack.read("experiment.json")), messages


def steps(messages: list[dict], name: str = "val/wer") -> list[int]:
    return [message["metric"]["step"] for message in messages if message.get("metric", {}).get("metricName") == name]


def key_of(output: Path) -> str:
    return (output / "comet" / "experiment_key").read_text().strip()


def upload(*paths: Path, force: bool = False) -> None:
    from comet_ml.offline import main_upload

    main_upload([str(path) for path in paths], force_upload=force)


def test_an_offline_run_goes_on_in_its_experiment(tmp_path, capsys, server, monkeypatch):
    """Two processes, one archive; the resumed run's archive joins it, whichever is uploaded first."""
    key = server.environment["COMET_API_KEY"]
    monkeypatch.setenv("COMET_API_KEY", "")
    output = tmp_path / "run"
    done = run_together(2, *arguments(output, "--epochs", "1", *LOGGED))
    assert done.returncode == 0, done.stderr
    first, = archives(output)
    assert f"comet upload {first}" in done.stdout and "no COMET_API_KEY" in done.stdout
    train.main(arguments(output, "--epochs", "3", *LOGGED, "--batch_size", "10"))
    _, second = archives(output)
    metadata, messages = zip(*map(contents, (first, second)), strict=True)
    assert {entry["offline_id"] for entry in metadata} == {key_of(output)}
    assert {entry["resume_strategy"] for entry in metadata} == {"get_or_create"}
    assert [steps(part) for part in messages] == [[0], [1, 2]]
    text = json.dumps(messages[0])
    assert all(name in text for name in ("val/wer", "train/grad_norm", "posteriors", "samples-", "git_revision"))
    monkeypatch.setenv("COMET_API_KEY", key)
    upload(second, first)
    assert sorted(step for step, _ in server.metrics(key_of(output), "val/wer")) == [0, 1, 2]
    assert len(server.experiments) == 1


def test_an_online_run_goes_on_in_its_experiment(tmp_path, capsys, server):
    output = tmp_path / "run"
    for epochs in "13":
        train.main(arguments(output, "--epochs", epochs, *LOGGED))
    assert [step for step, _ in server.metrics(key_of(output), "val/wer")] == [1, 3, 5]
    assert len(server.experiments) == 1 and not archives(output)
    assert "Comet:" not in capsys.readouterr().out


def test_a_fresh_run_is_a_fresh_experiment(tmp_path, server):
    """Also where an earlier one left its key; only a resumed run goes on."""
    keys = []
    for resumed in (False, False, True):
        close_logger(start_comet(tmp_path, project="p", name="n", resumed=resumed))
        keys.append((tmp_path / "experiment_key").read_text().strip())
    assert len(server.experiments) == 2 and keys[0] != keys[1] == keys[2]


@pytest.mark.parametrize("deleted", [True, False])
def test_an_experiment_that_the_server_lost_begins_anew(tmp_path, capsys, server, deleted):
    close_logger(start_comet(tmp_path, project="p", name="n", resumed=False))
    key, _ = server.experiments.popitem()
    server.deleted = {key} if deleted else set()
    logger = start_comet(tmp_path, project="p", name="n", resumed=True)
    logger.log_metrics({"x": 1.0}, step=7)
    close_logger(logger)
    found, = server.experiments
    assert (found != key) == deleted and found == (tmp_path / "experiment_key").read_text().strip()
    line, = capsys.readouterr().out.splitlines()
    assert key in line and ("goes on in a new one" if deleted else "begins there anew") in line
    assert server.metrics(found, "x") == [(7, 1.0)]


@pytest.mark.parametrize(("mode", "why"), [
    ("refuses", "ConnectionError"), ("forbids", "InvalidAPIKey"),
    pytest.param("errs", "CometRestApiException", marks=pytest.mark.long),
    pytest.param("hangs", "ConnectionError", marks=pytest.mark.long),
])
def test_a_server_that_fails_at_the_start(tmp_path, capfd, server, mode, why):
    """The run is logged offline, and says why."""
    server.stop() if mode == "refuses" else setattr(server, "mode", mode)
    started = time.monotonic()
    train.main(arguments(tmp_path / "run", "--epochs", "2", *LOGGED))
    assert time.monotonic() - started < (45 if mode == "hangs" else 20)
    printed = capfd.readouterr()
    archive, = archives(tmp_path / "run")
    assert f"no experiment can be begun online ({why}), so this run is logged offline" in printed.out
    assert f"comet upload {archive}" in printed.out
    assert steps(contents(archive)[1]) == [1, 3]
    assert "Traceback" not in printed.err
    assert_no_key(printed.out + printed.err, tmp_path, server)


@pytest.mark.parametrize("then", [
    "dies", pytest.param("errs", marks=pytest.mark.long), pytest.param("hangs", marks=pytest.mark.long)])
def test_a_server_that_fails_in_the_middle(tmp_path, monkeypatch, server, then):
    """Training goes on to its end; the archive holds the whole run, and becomes an experiment of its own."""
    output = tmp_path / "run"
    started = time.monotonic()
    process = start(*arguments(output, "--epochs", "12", *LOGGED, "--batch_size", "2"))
    wait_for(process, "epoch   1")
    pace = time.monotonic() - started  # of the machine: a start and two epochs
    while not server.metrics(key_of(output), "val/wer"):
        time.sleep(0.05)
    server.stop() if then == "dies" else setattr(server, "mode", then)
    printed = "".join(process.communicate(timeout=200))
    assert process.returncode == 0 and (output / "results.json").is_file()
    assert time.monotonic() - started < 4 * pace + (120 if then == "hangs" else 30)
    archive, = archives(output)
    assert "not everything could be sent" in printed and f"comet upload --force-upload {archive}" in printed
    assert_no_key(printed, tmp_path, server)
    assert steps(contents(archive)[1]) == list(range(4, 60, 5)) and contents(archive)[0]["offline_id"] == key_of(output)
    first = server.metrics(key_of(output), "val/wer")
    with comet_server() as back:
        back.experiments = server.experiments
        for name, value in back.environment.items():
            monkeypatch.setenv(name, value)
        upload(archive, force=True)
        whole, = back.experiments.keys() - {key_of(output)}
        assert sorted(step for step, _ in back.metrics(whole, "val/wer")) == list(range(4, 60, 5))
        assert back.metrics(key_of(output), "val/wer") == first


def assert_no_key(printed: str, folder: Path, server) -> None:
    secret = server.environment["COMET_API_KEY"]
    assert secret not in printed
    for path in folder.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path
    for archive in folder.rglob("*.zip"):
        with zipfile.ZipFile(archive) as pack:
            assert not any(secret.encode() in pack.read(name) for name in pack.namelist())
