"""Each benchmark runs, in a tiny form, and writes what it prints as JSON."""

import json
import math
import sys

import pytest
import torch

from benchmarks import beam_search, data, las, padding, startup, training_step, transcribe
from benchmarks.measure import medians, show

TINY = {
    padding: ["--utterances", "200"],
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
    assert options.keys() == {"config", "sorted", "time_stride", "rnn_type", "bf16", "channels_last"}
    found = training_step.measure(options, device=cpu, budget=8.0, steps=1)
    assert found["audio s/s"] > 0 and 0 < found["features %"] < 100 and found["waits"] == "not measured"
    for device in (cpu, gpu):
        for case in [*training_step.changes(device), training_step.RECIPE]:
            assert training_step.options_of(case, device)["config"]


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
