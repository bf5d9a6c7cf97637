"""Each benchmark runs, in a tiny form, and writes what it prints as JSON."""

import json
import math
import signal
import subprocess
import sys

import pytest
import torch

from benchmarks import beam_search, data, gpu, large_corpus, las, padding, startup, training_step, transcribe
from benchmarks.material import untrained, write_joined
from benchmarks.measure import medians, show

TINY = {
    padding: ["--utterances", "200"],
    large_corpus: ["--hours", "4"],
    data: ["--utterances", "4", "--batch_size", "2", "--rounds", "1"],
    las: ["--size", "16", "--batch_size", "2", "--seconds", "1", "--characters", "6", "--rounds", "1", "--threads",
          "1"],
    startup: ["--rounds", "1"],
    transcribe: ["--rounds", "1", "--longest", "6", "--files", "2"],
    beam_search: ["--utterances", "6", "--beam_size", "8", "--rounds", "1"],
}


@pytest.mark.parametrize(("module", "flags"), TINY.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_it_writes_finite_rows(module, flags, tmp_path, monkeypatch, capsys):
    """Of times and ratios above 0."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags, "--json", str(tmp_path / "results" / "x.json")])
    module.main()
    torch.set_num_threads(threads)
    content = json.loads((tmp_path / "results" / "x.json").read_text())
    assert content["rows"] and all(row.keys() == content["rows"][0].keys() for row in content["rows"])
    numbers = [value for row in content["rows"] for name, value in row.items()
               if isinstance(value, float) and not name.endswith("%")]
    assert numbers and all(0 < value < math.inf for value in numbers)
    assert content["title"] in capsys.readouterr().out


def test_a_step_of_training_is_measured():
    """Of the fastest row for a GPU, but for compiling; each row is known by its name."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    options = training_step.options_of("+ channels-last", gpu)
    assert options.keys() == {"config", "sorted", "time_stride", "rnn_type", "bf16", "fused", "channels_last"}
    found = training_step.measure(options, device=cpu, budget=8.0, steps=1)
    assert found["audio s/s"] > 0 and 0 < found["features %"] < 100 and "waits" not in found
    for device in (cpu, gpu):
        for case in [*training_step.changes(device), training_step.RECIPE]:
            assert training_step.options_of(case, device)["config"]


MADE_UP = {  # what the parts print and write on a GPU
    "mingru": {"case": "mingru, bf16", "T": 800, "B": 32, "ms": 1.5, "times nn.GRU": 4.0, "of floor": 1.5},
    "transcribe": {"what": "one file of 600 s, batches of 8", "real-time factor": 1e-4, "hours an hour": 1e4},
    "training_step": {"audio s/s": 5000.0, "GB": 3.0, "features %": 2.0, "busy %": 70.0, "waits": "ctc.py:117 (1)"},
}


def test_all_that_a_gpu_changes(tmp_path, monkeypatch):
    """Every part has its rows, with figures, a reason, or the time that was over; one table, and one JSON file."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    (tmp_path / "test_x.py").write_text(
        "import pytest\n@pytest.mark.parametrize('n', [1, 2, 3])\n"
        "def test_is_small(n, record_property):\n"
        "    record_property('size', n)\n    if n == 3: pytest.skip('no | three')\n    assert n < 2\n")
    monkeypatch.setattr(gpu, "TESTS", [str(tmp_path / "test_x.py")])
    start, begun = gpu.Run.start, []

    def made_up(self, arguments, seconds):
        module = arguments[1].removeprefix("benchmarks.")
        if module == "pytest":
            return start(self, arguments, 200)
        begun.append(module)
        status = -signal.SIGKILL if begun.count("training_step") == 2 else 0
        if module != "training_step":
            (self.output / arguments[-1]).write_text(json.dumps({"rows": [MADE_UP[module]]}))
        return subprocess.CompletedProcess(arguments, status, f"a warning\n{json.dumps(MADE_UP[module])}\nanother\n")

    monkeypatch.setattr(gpu.Run, "start", made_up)
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path / "out")])
    gpu.main()
    rows = json.loads((tmp_path / "out" / "gpu.json").read_text())["rows"]
    assert list(dict.fromkeys(row["part"] for row in rows)) == ["tests", "minGRU", "training step", "transcribing"]
    assert rows[0]["result"] == "1 failed, 1 passed, 1 skipped" and rows[0]["values"] == {"size": 3.0}
    assert "size at most 3; test_is_small[2]: assert 2 < 2; test_is_small[3]: no | three; " in rows[0]["note"]
    assert rows[1]["result"] == "1.5 ms" and rows[1]["note"] == "4 x nn.GRU's speed; 1.5 x the floor's time"
    assert rows[2]["result"] == "5000 x real time" and "waits: ctc.py:117 (1)" in rows[2]["note"]
    assert (rows[3]["result"], rows[3]["note"]) == ("failed", "the time was over")
    table = (tmp_path / "out" / "gpu.md").read_text().splitlines()
    assert "a GPU" in table[0] and len(table) == len(rows) + 4 and all(line.count("|") == 5 for line in table[2:])


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    run = gpu.Run(tmp_path, minutes=1)
    for part in gpu.NEEDED:
        run.run_part(part)
    assert {row["note"] for row in run.rows} >= {"not installed: soundfile, pytest", "not installed: soundfile"}


def test_a_part_that_takes_too_long_is_ended(tmp_path):
    run = gpu.Run(tmp_path, minutes=1)
    assert gpu.reason_of(run.start(["-c", "import time; print('begun', flush=True); time.sleep(60)"], 5)) == (
        "the time was over")
    assert gpu.reason_of(run.start(["-c", "raise ValueError('broken')"], 60)) == "ValueError: broken"


def test_a_gpus_way_to_transcribe(tmp_path):
    """On the CPU, in its place."""
    path, = write_joined(tmp_path, [1.0])
    checkpoint = untrained(tmp_path / "x.ckpt", rnn_size=16, rnn_layers=1)
    cases = transcribe.on_gpu(checkpoint, {path: 1.0}, {path: 1.0}, torch.device("cpu"))
    assert len(cases) == 2 * len(transcribe.BATCHES)
    for case, seconds in cases.values():
        case()
        assert seconds == 1.0


def test_padding_of_like_durations_is_little():
    """The promise: at most 4 % of the frames, from batches that change with the epoch."""
    random = padding.np.random.default_rng(0)
    seconds = padding.like_train_clean_100(6000, random)
    assert seconds.mean() == pytest.approx(12.7, abs=0.3) and seconds.min() >= 1.4 and seconds.max() <= 24.5
    epochs = [padding.our_batches(seconds, padding.BatchConfig(32), epoch=epoch) for epoch in range(2)]
    assert padding.waste(seconds, epochs[0]) < 0.04 < padding.waste(seconds, padding.random_batches(6000, random))
    assert padding.together_again(epochs[0], epochs[0]) == 1 and padding.together_again(*epochs) < 0.25


def test_medians_leave_the_disturbed_turn_out(tmp_path):
    """And the first, which warms up."""
    times = iter([0, 9, 0, 1, 0, 7, 0, 1])
    assert medians({"x": lambda: None}, rounds=3, clock=lambda: next(times)) == {"x": 1}
    show("title", [{"a": 1.0}], json_path=tmp_path / "x.json", n=3)
    assert json.loads((tmp_path / "x.json").read_text())["facts"] == {"n": 3}
