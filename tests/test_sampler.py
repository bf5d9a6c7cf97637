"""Batches by duration: all of every epoch, the same count for every process, within the budget."""

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.epoch_contents import EpochContents, SetShare
from data.epoch_progress import EpochProgress, EpochSegment
from data.sampler import BatchConfig, DurationBatchSampler


def durations(count: int, seed: int = 0) -> list[float]:
    """Seconds as in LibriSpeech: most between 12 and 16, a tail of short ones, none above 17."""
    random = np.random.default_rng(seed)
    most, short = random.normal(14.3, 1.1, count), random.uniform(1.5, 13, count)
    return np.clip(np.where(random.random(count) < 0.8, most, short), 1.3, 17).round(3).tolist()


def samplers(seconds: list[float], world: int = 1, **options) -> list[DurationBatchSampler]:
    """One sampler a process."""
    options = {"batch_size": 8, "batch_seconds": None, "shuffle": True, **options}
    config = BatchConfig(options.pop("batch_size"), options.pop("batch_seconds"), world)
    shuffle = options.pop("shuffle")
    return [DurationBatchSampler(EpochContents(seconds, **options), config, shuffle=shuffle, rank=rank)
            for rank in range(world)]


def resumed(seconds: list[float], config: BatchConfig, epoch: int, segments: list[EpochSegment], rank: int = 0,
            **options):
    """An epoch that goes on after these segments."""
    sampler = DurationBatchSampler(EpochContents(seconds, **options), config, shuffle=True, rank=rank)
    return EpochProgress(sampler, epoch, segments)


def members(sampler: DurationBatchSampler, epoch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return [[ref.index for ref in batch] for batch in sampler]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("budget", [{"batch_size": 7}, {"batch_size": 1}, {"batch_seconds": 60.0},
                                    {"batch_seconds": 0.1}, {"batch_size": 10_000}], ids=str)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 17, 500])
def test_every_epoch_has_every_utterance_once(count, world, budget, shuffle):
    processes = samplers(durations(count), world, shuffle=shuffle, **budget)
    for epoch in range(3):
        batches = [members(sampler, epoch) for sampler in processes]
        assert len({len(b) for b in batches}) == 1, "a process would wait for ever"
        assert len(batches[0]) == len(processes[0]) > 0, "as many in each epoch as promised"
        flat = [batch for process in batches for batch in process]
        assert all(flat), "an empty batch"
        assert sorted(index for batch in flat for index in batch) == list(range(count))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_seconds", [13.0, 30.0, 100.0])
def test_the_budget_of_seconds_is_kept(batch_seconds, world):
    seconds = np.array(durations(600))
    for sampler in samplers(seconds, world, batch_seconds=batch_seconds, batch_size=1):
        padded = [(len(batch), len(batch) * seconds[batch].max()) for batch in members(sampler)]
        assert all(size == 1 or total <= batch_seconds for size, total in padded)
        if batch_seconds == 100.0:
            assert np.mean([total for _, total in padded]) > 75, "and it is used"


@pytest.mark.parametrize("world", [1, 3])
def test_batch_size_is_kept(world):
    sizes = [len(batch) for sampler in samplers(durations(600), world, batch_size=9) for batch in members(sampler)]
    assert max(sizes) <= 9 and np.mean(sizes) > 5


def test_epochs_differ_and_repeat():
    sampler, twin = samplers(durations(1000))[0], samplers(durations(1000))[0]
    other = samplers(durations(1000), seed=1)[0]
    assert members(sampler, 0) == members(twin, 0)
    assert members(sampler, 5) == members(twin, 5), "whatever came before"
    assert members(sampler, 0) != members(sampler, 1)
    assert members(sampler, 0) != members(other, 0)
    together = [{frozenset(batch) for batch in members(sampler, epoch)} for epoch in (0, 1)]
    assert not together[0] & together[1], "members change, not only the order of batches"


def test_without_shuffling_the_longest_come_first_in_every_epoch():
    seconds = np.array(durations(200))
    sampler = samplers(seconds, shuffle=False)[0]
    order = seconds[[index for batch in members(sampler) for index in batch]]
    assert (np.diff(order) <= 0).all()
    assert members(sampler, 0) == members(sampler, 7)


def test_every_reading_has_a_seed_of_its_own():
    sampler = samplers(durations(200))[0]
    seeds = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        seeds += [ref.seed for batch in sampler for ref in batch]
    assert len(set(seeds)) == 400
    processes = samplers(durations(200), 2)
    for process in processes:
        process.set_epoch(1)
    drawn = {ref for process in processes for batch in process for ref in batch}
    sampler.set_epoch(1)
    assert drawn == {ref for batch in sampler for ref in batch}, "seeds depend on the process"


@pytest.mark.parametrize("options", [{"batch_size": 32}, {"batch_seconds": 400.0}, {"batch_size": 32, "world": 3}],
                         ids=str)
def test_padding_is_below_five_percent(options):
    seconds = durations(28_000)
    for sampler in samplers(seconds, **options):
        assert sampler.padding() < 0.05
    in_order = np.array(seconds)[:27_968].reshape(-1, 32)
    assert 1 - in_order.mean() / in_order.max(axis=1).mean() > 0.1, "too even a distribution to show anything"


def test_more_processes_than_utterances_are_refused():
    with pytest.raises(ValueError, match="^2 utterances cannot be shared by 3 processes$"):
        samplers([1.0, 2.0], 3)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("factor", "times"), [(2.0, {2}), (0.5, {0, 1}), (1.3, {1, 2}), (0.3, {0, 1}), (3, {3})])
@pytest.mark.parametrize("count", [60, 61])
def test_a_factor_is_how_often_an_epoch_has_each_utterance(count, factor, times, world):
    """Exactly so over epochs: each utterance as often as any other, give or take one; other sets once."""
    sets = [SetShare(10), SetShare(count, factor), SetShare(7)]
    processes, total = samplers(durations(count + 17), world, sets=sets), np.zeros(count, dtype=int)
    for epoch in range(10):
        batches = [members(sampler, epoch) for sampler in processes]
        assert {len(one) for one in batches} == {len(processes[0])}, "as many in each epoch and process as promised"
        seen = np.bincount([index for one in batches for batch in one for index in batch], minlength=count + 17)
        assert (seen[:10] == 1).all() and (seen[-7:] == 1).all()
        assert set(seen[10:-7]) == times and seen[10:-7].sum() == np.ceil(round(factor * count, 6))
        total += seen[10:-7]
        assert total.max() - total.min() <= 1, f"uneven after {epoch + 1} epochs"


def test_two_halves_are_a_whole():
    sampler, = samplers(durations(100), sets=[SetShare(100, 0.5)])
    halves = [{index for batch in members(sampler, epoch) for index in batch} for epoch in (4, 5)]
    assert [len(half) for half in halves] == [50, 50] and halves[0] | halves[1] == set(range(100))


def test_each_occurrence_has_a_seed_of_its_own():
    sampler, = samplers(durations(100), sets=[SetShare(100, 3)])
    assert len({ref.seed for batch in sampler for ref in batch}) == 300


@pytest.mark.parametrize("factor", [1, 0.7])
@pytest.mark.parametrize("count", [5, 301, 3000])
def test_speeds_keep_the_budget_and_the_number_of_batches(count, factor):
    seconds, sets = np.array(durations(count)), [SetShare(count, factor)]
    drawn = []
    for sampler in samplers(seconds, 2, batch_seconds=100.0, sets=sets, speeds=[0.9, 1.1, 1.0]):
        for epoch in range(5):
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            padded = [max(seconds[ref.index] / ref.speed for ref in batch) * len(batch) for batch in batches]
            assert max(padded) <= 100.0, "seconds as they are at the speeds drawn"
            assert count < 3000 or np.mean(padded) > 84, "and the budget is used"
            drawn += [ref.speed for batch in batches for ref in batch]
    shares = np.unique(drawn, return_counts=True)
    assert shares[0].tolist() == [0.9, 1.0, 1.1]
    assert count < 3000 or np.ptp(shares[1]) <= 5, "each speed as often as any other"


def test_every_utterance_has_every_speed_in_time():
    sampler, = samplers(durations(50), speeds=[0.9, 1.0, 1.1])
    drawn = [set() for _ in range(50)]
    for epoch in range(40):
        sampler.set_epoch(epoch)
        for batch in sampler:
            for ref in batch:
                drawn[ref.index].add(ref.speed)
    assert all(speeds == {0.9, 1.0, 1.1} for speeds in drawn)


@pytest.mark.parametrize("options", [{"batch_size": 32}, {"batch_seconds": 400.0, "world": 2}], ids=str)
def test_padding_with_speeds_is_below_four_percent(options):
    """Speeds drawn after the batches are made would leave 11 %."""
    for sampler in samplers(durations(28_000), speeds=[0.9, 1.0, 1.1], **options):
        assert sampler.padding() < 0.04


MIXED = {"sets": [SetShare(100, 1.3), SetShare(80, 0.5), SetShare(120, 2)], "speeds": [0.9, 1.0, 1.1]}
TARS = {"tars": np.arange(300) // 10, "window": 60}
VARIANTS = pytest.mark.parametrize("options", [{}, MIXED, TARS, MIXED | TARS], ids=["plain", "mixed", "tars", "both"])
CONFIGS = [BatchConfig(7), BatchConfig(5, None, 2), BatchConfig(1, 40.0, 3), BatchConfig(3, None, 1),
           BatchConfig(1, 90.0, 2)]


@VARIANTS
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 3), (3, 2, 4), (0, 2, 1, 4), (4, 1, 4)], ids=str)
def test_an_epoch_goes_on_in_other_batches_without_repeating_or_dropping(order, options):
    """Stopped after a few batches and resumed with other sizes and processes, again and again."""
    seconds, epoch = durations(300), 4
    seen, segments = [], []
    for number, which in enumerate(order):
        config, last = CONFIGS[which], number == len(order) - 1
        processes = [resumed(seconds, config, epoch, segments, rank, **options) for rank in range(config.processes)]
        batches = [list(sampler) for sampler in processes]
        assert {len(sampler) for sampler in processes} == {len(batches[0]) + sum(one.batches for one in segments)}
        count = len(batches[0]) if last else 4
        seen += [ref for process in batches for batch in process[:count] for ref in batch]
        segments = [*segments, EpochSegment(config, count)]
    whole = DurationBatchSampler(EpochContents(seconds, **options), CONFIGS[0], shuffle=True)
    whole.set_epoch(epoch)
    assert sorted(seen) == sorted(ref for batch in whole for ref in batch), "with their speeds and seeds"
    assert "sets" in options or sorted(ref.index for ref in seen) == list(range(300))
    for sampler in processes:
        sampler.set_epoch(epoch + 1)
        assert len(list(sampler)) == len(sampler) == sampler.batches_per_epoch, "the next epoch is whole again"


@VARIANTS
def test_the_same_batches_go_on_as_they_were(options):
    whole, = samplers(durations(300), **options)
    whole.set_epoch(2)
    rest = resumed(durations(300), BatchConfig(8), 2, [EpochSegment(BatchConfig(8), 11)], **options)
    assert list(rest) == list(whole)[11:] and len(rest) == len(whole)


def test_what_is_left_must_suffice_for_the_processes():
    with pytest.raises(ValueError, match="^1 utterances cannot be shared by 2 processes$"):
        resumed(durations(20), BatchConfig(1, None, 2), 0, [EpochSegment(BatchConfig(1), 19)])


def tars_at_once(order: np.ndarray) -> np.ndarray:
    """How many tars are begun and not yet ended at each utterance, by the tars of the utterances in their order."""
    _, begins = np.unique(order, return_index=True)
    _, ends = np.unique(order[::-1], return_index=True)
    changes = np.bincount(begins, minlength=len(order) + 1) - np.bincount(len(order) - ends, minlength=len(order) + 1)
    return changes.cumsum()[:-1]


@pytest.mark.parametrize("options", [{"batch_size": 8}, {"batch_seconds": 100.0}], ids=str)
@pytest.mark.parametrize("world", [1, 3])
def test_tars_are_read_a_few_at_a_time(world, options):
    """By all processes alike, each tar in one or two windows of 15; their order, and which are together, changes."""
    seconds, tars = durations(3000), np.random.default_rng(0).permutation(3000) // 20
    processes, plain = (samplers(seconds, world, **options, **more) for more in ({"tars": tars, "window": 300}, {}))
    orders = []
    for epoch in range(2):
        batches = [members(sampler, epoch) for sampler in processes]
        assert {len(one) for one in batches} == {len(plain[0])}, "as many as without windows"
        flat = [i for step in zip(*batches, strict=True) for batch in step for i in batch]
        assert sorted(flat) == list(range(3000)), "every utterance once"
        open_tars = tars_at_once(tars[flat])
        assert max(open_tars) <= 50 and np.mean(open_tars) < 35
        orders.append(list(dict.fromkeys(tars[flat])))
    assert abs(processes[0].padding() - plain[0].padding()) < 0.01, "durations are as alike as without"
    assert orders[0] != orders[1] and set(orders[0][:15]) != set(orders[1][:15])
    assert max(tars_at_once(tars[[i for batch in members(plain[0]) for i in batch]])) > 140, "without: nearly all"


def test_files_are_shared_out_to_the_windows():
    """Of a mix of shards and files, each part of the epoch has both; its batches are drawn from all alike."""
    tars = np.where(np.arange(3000) < 2000, np.arange(3000) // 20, -1)
    sampler, = samplers(durations(3000), tars=tars, window=300)
    order = np.array([i for batch in members(sampler) for i in batch])
    assert sorted(order) == list(range(3000))
    shares = [(tars[part] < 0).mean() for part in np.array_split(order, 10)]
    assert 0.2 < min(shares) and max(shares) < 0.5


def test_what_one_window_holds_has_the_batches_of_files():
    plain, = samplers(durations(300))
    for tars, window in ((np.arange(300) // 10, 300), (np.full(300, -1), 10)):
        sampler, = samplers(durations(300), tars=tars, window=window)
        assert members(sampler) == members(plain)


class Listener(lightning.LightningModule):
    """Notes which utterances each epoch brings."""

    def __init__(self):
        super().__init__()
        self.weight, self.epochs = torch.nn.Parameter(torch.zeros(1)), []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: list[int], batch_idx: int) -> torch.Tensor:
        self.epochs[-1].append(batch)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Indices(torch.utils.data.Dataset):
    """Gives back what was drawn."""

    def __getitem__(self, ref) -> int:
        return ref.index


def test_lightning_sets_the_epoch(tmp_path):
    loader = DataLoader(Indices(), batch_sampler=EpochProgress(samplers(durations(100))[0]), collate_fn=list)
    module = Listener()
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False,
                                use_distributed_sampler=False, default_root_dir=tmp_path)
    trainer.fit(module, loader)
    expected = samplers(durations(100))[0]
    assert module.epochs == [members(expected, epoch) for epoch in range(3)]
