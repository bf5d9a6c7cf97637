"""What a run says on the way where there is no terminal: a line a minute. The clock is a stand-in."""

import re
from types import SimpleNamespace

import pytest
from training_runs import arguments

import train
from models.lightning_module import SpeechModule
from utils.training import callbacks
from utils.training.callbacks import ProgressLines, Throughput, format_duration
from utils.training.trainer import build_callbacks

LINE = re.compile(r"step +(\d+) of (\d+)  epoch (\d+)  loss (\d+\.\d{3})  (\d+\.\d) x real time(?:  (.+) left)?")
STEPS, EPOCHS = 10, 2  # of one utterance each


class Clock:
    """Moves on with every batch alone, and notes when each line was printed."""

    def __init__(self, monkeypatch, *, training: float, evaluation: float):
        self.now, self.printed = 0.0, []
        monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(callbacks, "print", self.note, raising=False)
        for name, seconds in (("training_step", training), ("validation_step", evaluation), ("test_step", evaluation)):
            monkeypatch.setattr(SpeechModule, name, self.moving(getattr(SpeechModule, name), seconds))

    def moving(self, step, seconds):
        def moved(*args, **kwargs):
            self.now += seconds
            return step(*args, **kwargs)
        return moved

    def note(self, line, flush):
        assert flush, "a log file would get it when its buffer is full"
        self.printed.append((self.now, line))


def lines_of(monkeypatch, output, *flags, training, evaluation=1.0):
    clock = Clock(monkeypatch, training=training, evaluation=evaluation)
    train.main(arguments(output, "--batch_size", "1", "--epochs", str(EPOCHS), "--val_sets", "dev", *flags))
    return [(now, line) for now, line in clock.printed if not line.startswith("epoch")]


def test_a_line_a_minute(tmp_path, monkeypatch):
    """20 s a step: at 60, 120 and 180 s of an epoch of 200 s, the first one included; 5 s of validation between."""
    found = lines_of(monkeypatch, tmp_path / "run", training=20.0)
    assert [now for now, _ in found] == [60, 120, 180, 265, 325, 385]
    parts = [LINE.fullmatch(line).groups() for _, line in found]
    assert [(int(step), int(steps), int(epoch)) for step, steps, epoch, *_ in parts] == [
        (3, 20, 0), (6, 20, 0), (9, 20, 0), (13, 20, 1), (16, 20, 1), (19, 20, 1)]
    assert [left for *_, left in parts] == ["6 min", "5 min", "4 min", "2 min", "1 min", "20 s"]
    assert all(float(loss) > 0 for *_, loss, _, _ in parts)


def test_long_steps_and_long_evaluation(tmp_path, monkeypatch):
    """No line comes twice, each says where it is, and a test set is no exception."""
    found = lines_of(monkeypatch, tmp_path / "run", "--epochs", "1", training=1.0, evaluation=40.0)
    assert [line for _, line in found] == ["dev: batch 2 of 5", "dev: batch 4 of 5",
                                           "test: batch 1 of 5", "test: batch 3 of 5", "test: batch 5 of 5"]
    assert min(later - now for (now, _), (later, _) in zip(found, found[1:], strict=False)) >= callbacks.LINE_SECONDS


def test_a_run_that_goes_on_counts_its_own_time(tmp_path, monkeypatch):
    """Ten steps of 20 s were another process's; ten of 90 s are left, from the first of which the rest follows."""
    lines_of(monkeypatch, tmp_path / "run", "--epochs", "1", training=20.0)
    monkeypatch.undo()
    found = lines_of(monkeypatch, tmp_path / "run", "--checkpoint_path", "auto", training=90.0)
    assert len(found) == STEPS
    assert found[0][1].startswith("step     11 of 20  epoch 1") and found[0][1].endswith("14 min left")


def test_epochs_that_are_over_may_have_had_other_batches(tmp_path, monkeypatch):
    """Ten steps of one utterance each were before; five of two are left."""
    lines_of(monkeypatch, tmp_path / "run", "--epochs", "1", training=20.0)
    monkeypatch.undo()
    found = lines_of(monkeypatch, tmp_path / "run", "--checkpoint_path", "auto", "--batch_size", "2", training=90.0)
    assert [LINE.fullmatch(line).groups()[:2] for _, line in found if "step" in line] == [
        (str(step), "15") for step in range(11, 16)]


def test_accumulated_batches_before_the_first_step_leave_the_time_open(tmp_path, monkeypatch):
    found = lines_of(monkeypatch, tmp_path / "run", "--accumulate", "5", "--epochs", "1", training=30.0)
    assert [LINE.fullmatch(line)[6] for _, line in found] == [None, None, "3 min", "4 min", "0 s"]


def test_quick_epochs_have_no_lines(tmp_path, monkeypatch):
    assert not lines_of(monkeypatch, tmp_path / "run", training=4.0)


@pytest.mark.parametrize("first", [True, False])
def test_the_first_process_speaks(first, monkeypatch):
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=iter([0, 100]).__next__))
    assert ProgressLines(Throughput())._is_due(SimpleNamespace(is_global_zero=first)) is first


@pytest.mark.parametrize("bar", [True, False])
def test_a_terminal_has_a_bar_instead(bar, tmp_path):
    args = train.parse_arguments(arguments(tmp_path, "--progress_bar" if bar else "--no-progress_bar"))
    assert any(isinstance(one, ProgressLines) for one in build_callbacks(args)) is not bar


@pytest.mark.parametrize(("seconds", "text"), [
    (0.4, "0 s"), (29.4, "29 s"), (31, "1 min"), (3569, "59 min"), (3571, "1 h 00 min"), (90_000, "25 h 00 min")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text
