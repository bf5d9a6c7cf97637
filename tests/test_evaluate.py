"""`evaluate.py` as it is typed."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import CORPUS, ROOT, tiny_network

import evaluate
from models import Recognizer
from utils.audio import load_audio
from utils.checkpoint.averaging import average_checkpoints, best_checkpoints
from utils.checkpoint.reading import CheckpointError
from utils.metrics import count_errors
from utils.report.report import short_names

ARPA = """\\data\\
ngram 1=4
ngram 2=1

\\1-grams:
-1.0\t<unk>\t0
-1.0\t<s>\t0
-1.0\t</s>\t0
-0.5\tthe\t0

\\2-grams:
-0.5\t<s> the

\\end\\
"""


def save(path: Path, network: Recognizer) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"recognizer": network.config,
                "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()}}, path)
    return path


def noisy(seed: int, variant: str = "mingru") -> Recognizer:
    """Random weights, large enough that the network writes a few letters."""
    network = tiny_network(variant)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints and what else the command line names."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "lm.arpa").write_text(ARPA)
    (folder / "broken.arpa").write_text("\\data\\\nngram 1=")
    (folder / "bad.yaml").write_text("beam_size: wide\n")
    (folder / "file").touch()
    return {"ctc": save(folder / "ctc" / "checkpoints" / "best.ckpt", noisy(0)),
            "other": save(folder / "other" / "checkpoints" / "best.ckpt", noisy(1)),
            "las": save(folder / "las.ckpt", tiny_network("las")),
            "no_ctc": save(folder / "no_ctc.ckpt", tiny_network("las-multihead")),
            "letters": save(folder / "letters.ckpt", Recognizer.build(
                "deepspeech2", alphabet=" 'abcdefghijklmnopqrstuvwxyz.", n_mels=20, conv_channels=4, residual_blocks=1,
                rnn_size=16, rnn_layers=1)),
            **{name: folder / name for name in ("lm.arpa", "broken.arpa", "bad.yaml", "file")}, "tmp": folder}


def run(capsys, files, *argv) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of an evaluation of the tests' corpus."""
    flags = ["--data_root", CORPUS, "-w", 0, "--cache_dir", files["tmp"] / "index", "--device", "cpu", *argv]
    flags += [] if "--test_sets" in argv else ["--test_sets", "test"]
    status = 0
    try:
        evaluate.main([str(flag) for flag in flags])
    except SystemExit as leave:
        status = leave.code
    return status, *capsys.readouterr()


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "hypotheses.jsonl").read_text().splitlines()]


@torch.inference_mode()
def text_of(network: Recognizer, row: dict) -> str:
    """Greedy, of one utterance alone."""
    waveform = load_audio(row["audio"])
    return network.decode(network.encode(waveform[None], torch.tensor([len(waveform)])))[0]


def test_report_holds_what_the_network_wrote(files, tmp_path, capsys):
    """Texts are those of each utterance alone, and every figure follows from them."""
    status, out, _ = run(capsys, files, "--checkpoint", files["ctc"], "--test_sets", "test", "dev", "--worst", 2,
                         "--batch_seconds", 20, "--report", tmp_path)
    assert status == 0
    report, rows, network = json.loads((tmp_path / "report.json").read_text()), rows_of(tmp_path), noisy(0)
    assert [row["hypothesis"] for row in rows] == [text_of(network, row) for row in rows]
    assert any(row["hypothesis"] for row in rows) and len({row["hypothesis"] for row in rows}) > 1
    for split, found in zip(("test", "dev"), report["results"], strict=True):
        texts = [(row["reference"], row["hypothesis"]) for row in rows if row["split"] == split]
        counts = count_errors(*map(list, zip(*texts, strict=True)))
        assert (found["wer"], found["cer"], found["errors"], found["words"], found["utterances"]) == (
            counts.wer, counts.cer, counts.word_errors, counts.words, len(texts))
        assert found["substitutions"] + found["insertions"] + found["deletions"] == counts.word_errors
        assert found["wer_interval"][0] <= counts.wer <= found["wer_interval"][1]
        assert found["real_time_factor"] == pytest.approx(found["compute_seconds"] / found["audio_seconds"], rel=0.1)
        line, = (line for line in out.splitlines() if line.startswith(f"{split} "))
        assert f" {100 * counts.wer:.2f} " in line and f" {100 * counts.cer:.2f} " in line
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "alignments.txt", "hyp.trn", "hypotheses.jsonl", "ref.trn", "report.html", "report.json"]
    assert report["systems"][0]["weights"] == [str(files["ctc"])] and report["systems"][0]["decoding"]["beam_size"]
    assert (tmp_path / "report.html").read_text().count("<article>") == 2


def test_beam_search_with_an_ngram_against_greedy(files, tmp_path, capsys):
    (tmp_path / "tuned.yaml").write_text(f"decoder: beam\nlm: {files['lm.arpa']}\nalpha: 0.2\nbeam_size: 8\n")
    status, out, _ = run(capsys, files, "--checkpoint", files["ctc"], "--config", tmp_path / "tuned.yaml", "--nbest", 3,
                         "--compare_greedy", "--report", tmp_path / "report", "--worst", 0)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert status == 0 and "oracle WER" in out and "test: beam 8 + lm.arpa against greedy: " in out
    assert [one["decoding"]["decoder"] for one in report["systems"]] == ["greedy", "beam"]
    assert report["systems"][1]["decoding"]["alpha"] == 0.2
    compared, = report["comparisons"]
    rates = [one["wer"] for one in report["results"]]
    assert compared["wer_difference"] == pytest.approx(rates[1] - rates[0]) and 0 < compared["p_value"] <= 1
    assert report["results"][1]["oracle_wer"] <= rates[1]
    assert (tmp_path / "report" / "hyp-2.trn").is_file()


@pytest.mark.parametrize("limit", [1, 3, 4, 100])
def test_a_limit_is_spread_over_the_split(files, tmp_path, capsys, limit):
    ids = {}
    for name, flags in (("all", []), ("some", ["--limit", limit])):
        assert run(capsys, files, "--checkpoint", files["ctc"], "--report", tmp_path / name, *flags)[0] == 0
        ids[name] = [row["id"] for row in rows_of(tmp_path / name)]
    places = [ids["all"].index(name) for name in ids["some"]]
    assert len(places) == min(limit, len(ids["all"])) and places[0] == 0
    steps = [after - before for before, after in pairwise([*places, len(ids["all"])])]
    assert max(steps) - min(steps) <= 1, "evenly, and to the end"


def test_checkpoints_side_by_side(files, tmp_path, capsys):
    """Networks of different kinds; each one's texts are those that it has alone."""
    paths = [files["ctc"], files["other"], files["las"]]
    status, out, _ = run(capsys, files, "--checkpoint", *paths, "--report", tmp_path, "--worst", 1, "--limit", 3)
    rows = rows_of(tmp_path)
    assert status == 0 and len(rows) == 9 and out.count(" against ctc/best greedy: ") == 2
    for path, name in zip(paths, dict.fromkeys(row["system"] for row in rows), strict=True):
        mine, network = [row for row in rows if row["system"] == name], Recognizer.from_checkpoint(path)
        assert [row["hypothesis"] for row in mine] == [text_of(network, row) for row in mine]
    assert json.loads((tmp_path / "report.json").read_text())["limit"] == 3
    assert (tmp_path / "report.html").read_text().count("<figure>") == 4  # posteriors of three, attention of one


@pytest.mark.parametrize("paths", [["a/checkpoints/best.ckpt", "b/checkpoints/best.ckpt", "b/x.ckpt"],
                                   ["a/x.ckpt", "z/a/x.ckpt"]])
def test_names_are_short_and_unique(paths):
    names = short_names(paths)
    assert list(names.values()) == paths
    assert list(names) == (["a/best", "b/best", "b/x"] if len(paths) == 3 else paths)


def test_average_of_the_best(files, tmp_path, capsys):
    """The mean of the two with the lowest val WER of three, wherever --checkpoint points in their folder."""
    folder = tmp_path / "checkpoints"
    for seed, name in enumerate(("epoch001-wer0.2000", "epoch003-wer0.1000", "epoch002-wer0.0900-v1", "last")):
        save(folder / f"{name}.ckpt", noisy(seed))
    (folder / "best.ckpt").symlink_to("epoch003-wer0.1000.ckpt")
    status, out, _ = run(capsys, files, "--checkpoint", folder / "best.ckpt", "--average", 2, "--report", tmp_path,
                         "--worst", 0)
    assert status == 0 and "mean of " in out
    expected, second = noisy(1), noisy(2).state_dict()
    with torch.no_grad():
        for name, value in expected.state_dict().items():
            value.copy_((value.double() + second[name].double()) / 2 if value.is_floating_point() else second[name])
    rows = rows_of(tmp_path)
    assert [row["hypothesis"] for row in rows] == [text_of(expected, row) for row in rows]
    weights = json.loads((tmp_path / "report.json").read_text())["systems"][0]["weights"]
    assert [Path(path).name for path in weights] == ["epoch002-wer0.0900-v1.ckpt", "epoch003-wer0.1000.ckpt"]


def test_average_weights(tmp_path):
    """Counters are not averaged, the precision stays, and equal WERs prefer the later epoch."""
    networks = [noisy(seed, "batchnorm") for seed in range(3)]
    for i, network in enumerate(networks):
        for value in network.state_dict().values():
            if not value.is_floating_point():
                value.fill_(i + 5)
    paths = [save(tmp_path / f"epoch00{i}-wer0.1000.ckpt", network) for i, network in enumerate(networks)]
    assert best_checkpoints(tmp_path, 2) == [paths[2], paths[1]]
    mean = average_checkpoints(paths)
    for name, value in mean.items():
        parts = [network.state_dict()[name.removeprefix("network.")] for network in networks]
        expected = torch.stack(parts).double().mean(dim=0) if value.is_floating_point() else torch.tensor(5)
        torch.testing.assert_close(value.double(), expected.double(), rtol=1e-6, atol=1e-6)
        assert value.dtype == parts[0].dtype
    alone = average_checkpoints(paths[:1])
    torch.testing.assert_close(alone["network.project.weight"], networks[0].project.weight.data)


def test_average_refuses_other_networks(tmp_path):
    first, other = save(tmp_path / "a.ckpt", noisy(0)), save(tmp_path / "b.ckpt", noisy(0, "lookahead"))
    with pytest.raises(CheckpointError, match=r"b.ckpt: holds another network than .*a.ckpt.*bidirectional, lookahead"):
        average_checkpoints([first, other])
    with pytest.raises(CheckpointError, match="holds 0 checkpoints named epochNNN-werX.XXXX.ckpt, not the 2"):
        best_checkpoints(tmp_path, 2)


@pytest.mark.parametrize(("flags", "message"), [
    ([], "required: --checkpoint"),
    (["--checkpoint", "absent.ckpt"], "absent.ckpt: no such checkpoint file"),
    (["--checkpoint", str(ROOT / "LICENSE")], "LICENSE: not a checkpoint"),
    (["--checkpoint", "{ctc}", "{letters}"], "different alphabets"),
    (["--checkpoint", "{ctc}", "--device", "abacus"], "--device abacus"),
    (["--checkpoint", "{ctc}", "--test_sets", "nowhere"], "no split 'nowhere'"),
    (["--checkpoint", "{ctc}", "--test_sets", "{tmp}/none.jsonl"], "none.jsonl"),
    (["--checkpoint", "{ctc}", "--batch_size", "0"], "--batch_size: 0 must be at least 1"),
    (["--checkpoint", "{ctc}", "--limit", "0"], "--limit: 0 must be at least 1"),
    (["--checkpoint", "{ctc}", "--average", "3"], "holds 0 checkpoints named epochNNN"),
    (["--checkpoint", "{ctc}", "--compare_greedy"], "--compare_greedy"),
    (["--checkpoint", "{ctc}", "--lm", "x.arpa"], "need --decoder beam"),
    (["--checkpoint", "{ctc}", "--decoder", "beam", "--lm", "x.arpa"], "x.arpa: no such language model"),
    (["--checkpoint", "{ctc}", "--decoder", "beam", "--lm", "{broken.arpa}"], "broken.arpa: "),
    (["--checkpoint", "{ctc}", "--config", "{bad.yaml}"], "bad.yaml: beam_size: invalid int value: 'wide'"),
    (["--checkpoint", "{ctc}", "--config", "absent.yaml"], "absent.yaml: No such file"),
    (["--checkpoint", "{ctc}", "--report", "{file}"], "file: File exists"),
    (["--checkpoint", "{ctc}", "--report", "{file}/x"], "Not a directory"),
    (["--checkpoint", "{ctc}", "--val_sets", "dev"], "--val_sets is for --tune; what is measured is named by"),
    (["--checkpoint", "{ctc}", "--output", "x.yaml"], "--output is for --tune"),
])
def test_what_is_wrong_in_one_line(files, capsys, monkeypatch, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    for name, path in files.items():
        flags = [flag.replace(f"{{{name}}}", str(path)) for flag in flags]
    status, _, error = run(capsys, files, *flags)
    assert status == 2 and message in error
    assert len(error.splitlines()) == 1 and error.startswith("evaluate.py: error: ")
    assert not list(tmp_path.iterdir())


def test_audio_that_turns_bad_stops_it_in_one_line(files, capsys, monkeypatch, tmp_path):
    """Nothing is written where something failed on the way."""
    from data import dataset as loader
    from utils.audio import AudioError

    def unreadable(path, **_):
        raise AudioError(path, "truncated")

    monkeypatch.setattr(loader, "load_audio", unreadable)
    status, out, error = run(capsys, files, "--checkpoint", files["ctc"], "--report", tmp_path)
    assert status == 2 and error.startswith("evaluate.py: error: ") and error.endswith(".opus: truncated\n")
    assert "WER" not in out and not list(tmp_path.iterdir())


def test_a_full_device_says_what_helps(files, capsys, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluate, "recognize", full)
    status, _, error = run(capsys, files, "--checkpoint", files["ctc"])
    assert status == 2 and "--batch_seconds" in error and len(error.splitlines()) == 1


def test_help_loads_nothing_of_training():
    """As a user starts it."""
    program = ("import sys, evaluate\ntry:\n    evaluate.main(['--help'])\nexcept SystemExit as leave:\n"
               "    assert not leave.code\nassert not {'lightning', 'matplotlib', 'kenlm'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "--compare_greedy" in done.stdout, done.stderr
