"""Optimisers and schedules by name, steps that are skipped, and the gradient of a global batch."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import models.skipping
import train
from models import Recognizer
from models.optim import (
    OPTIMIZERS,
    SCHEDULES,
    GlobalTokenMean,
    OptimizerConfig,
    Schedule,
    build_optimizer,
    cosine,
    noam,
    onecycle,
)
from models.skipping import SkipNonFinite, Snapshot


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def take_step(network: nn.Module, optimizer, seed: int, spoiled: str = "", guard: SkipNonFinite | None = None) -> None:
    """One step on random data; `spoiled` is the value that an element of the gradient takes."""
    optimizer.zero_grad()
    network(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))).pow(2).sum().backward()
    if spoiled:
        network[0].weight.grad[1, 1] = float(spoiled)
    if guard:
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        guard.watch(norm, step=seed, ids=[f"utterance {seed}"], scaled=False)
    optimizer.step()


def state_of(network: nn.Module, optimizer) -> dict:
    return {"network": {name: value.clone() for name, value in network.state_dict().items()},
            "optimizer": {i: {name: value.clone() for name, value in state.items()}
                          for i, state in optimizer.state_dict()["state"].items()}}


def nadam(groups, config, fused):
    """One whose state does not start at zero, and that nobody has registered."""
    return torch.optim.NAdam(groups, lr=config.learning_rate)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "nadam"])
@pytest.mark.parametrize("spoiled", ["nan", "inf"])
def test_a_skipped_step_leaves_no_trace(monkeypatch, capsys, name, spoiled):
    """Whatever the optimiser: the first step, one in the middle and the last of them are as if they never were."""
    monkeypatch.setitem(OPTIMIZERS, "nadam", nadam)
    ends = []
    for steps in ([(0, spoiled), (1, ""), (2, spoiled), (3, ""), (4, spoiled)], [(1, ""), (3, "")]):
        network = tiny()
        optimizer = build_optimizer(network, OptimizerConfig(optimizer=name), fused=True)
        guard = SkipNonFinite(optimizer, patience=2, look_every=1)
        for seed, value in steps:
            take_step(network, optimizer, seed, value, guard)
        ends.append(state_of(network, optimizer))
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    said = capsys.readouterr().out
    assert "step 4 skipped, its gradient is not finite (3 so far); utterances: utterance 4\n" in said


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fused_optimizer_is_not_copied(monkeypatch, name):
    """It skips a step by itself, as for a gradient scaler; copying 27 million weights at each step takes time."""
    monkeypatch.setattr(models.skipping, "Snapshot", None)
    network = tiny()
    optimizer = build_optimizer(network, OptimizerConfig(optimizer=name), fused=True)
    guard = SkipNonFinite(optimizer, patience=2, look_every=1)
    take_step(network, optimizer, 0, "", guard)
    if name == "sgd":  # its first momentum would be whatever was in memory
        with pytest.raises(TypeError):
            take_step(network, optimizer, 1, "nan", guard)
    else:
        take_step(network, optimizer, 1, "nan", guard)


def test_biases_of_any_shape_are_not_decayed():
    """Conformer's two attention biases are matrices."""
    network = Recognizer.build(model="conformer", encoder_layers=1, encoder_size=8, attention_heads=2)
    decayed, others = build_optimizer(network, OptimizerConfig(), fused=False).param_groups
    names = {parameter: name for name, parameter in network.named_parameters()}
    assert {names[p] for p in others["params"]} == {
        name for name, p in network.named_parameters() if p.dim() == 1 or name.endswith("bias")}
    assert "blocks.0.attention.content_bias" in {names[p] for p in others["params"]}
    assert len(decayed["params"]) + len(others["params"]) == len(names)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("finite", [True, False])
def test_the_device_chooses_between_old_and_new(name, finite):
    """As on a GPU, where the host does not know whether the gradient is finite."""
    network = tiny()
    optimizer = build_optimizer(network, OptimizerConfig(optimizer=name), fused=True)
    for seed in (0, 1):
        take_step(network, optimizer, seed)
    before, snapshot = state_of(network, optimizer), Snapshot(optimizer)
    take_step(network, optimizer, 2)
    after = state_of(network, optimizer)
    snapshot.restore_unless(torch.tensor(finite))
    torch.testing.assert_close(state_of(network, optimizer), after if finite else before, rtol=0, atol=0)
    assert not torch.equal(before["network"]["0.weight"], after["network"]["0.weight"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_flags_of_a_resumed_run_win_over_its_checkpoint(name):
    """Learning rate, weight decay and momentum; the state is the checkpoint's."""
    network = tiny()
    old = build_optimizer(network, OptimizerConfig(optimizer=name, momentum=0.8), fused=True)
    schedule = Schedule(old, OptimizerConfig(warmup_steps=2), steps_per_epoch=5, epochs=2)
    for seed in range(3):
        take_step(network, old, seed)
        schedule.step()
    config = OptimizerConfig(optimizer=name, learning_rate=0.25, weight_decay=0.5, momentum=0.6, warmup_steps=6)
    new = build_optimizer(network, config, fused=False)
    resumed = Schedule(new, config, steps_per_epoch=5, epochs=2)
    new.load_state_dict(old.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    matrices, others = new.param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert matrices.get("momentum", matrices.get("betas", [0])[0]) == 0.6
    assert matrices["lr"] == others["lr"] == resumed.get_last_lr()[0] == 0.25 * cosine(3, 6, 10) == 0.25 * 4 / 6
    take_step(network, new, 3)
    resumed.step()
    assert matrices["lr"] == 0.25 * 5 / 6
    kept = (state_of(network, old)["optimizer"][0], state_of(network, new)["optimizer"][0])
    assert kept[0].keys() == kept[1].keys() and int(kept[1].get("step", 4)) == 4


def test_cosine_is_linear_and_then_half_a_cosine():
    assert [cosine(step, 4, 20) for step in (0, 3, 4)] == [0.25, 1.0, 1.0]
    assert cosine(12, 4, 20) == pytest.approx((1 + 0.01) / 2) and cosine(20, 4, 20) == pytest.approx(0.01)


def test_noam_is_that_of_the_paper():
    """Equation 3 of Vaswani et al. 2017, whose steps count from 1, over its highest value."""
    def paper(step, warmup):
        return 512 ** -0.5 * min(step ** -0.5, step * warmup ** -1.5)

    for step in (0, 5, 998, 999, 1000, 123_456):
        assert noam(step, 1000, 10) == pytest.approx(paper(step + 1, 1000) / paper(1000, 1000), rel=1e-12)


@pytest.mark.parametrize(("warmup", "total"), [(30, 100), (2, 5), (99, 100)])
def test_onecycle_is_that_of_pytorch(warmup, total):
    optimizer = torch.optim.SGD(tiny().parameters(), lr=1.0)
    expected = OneCycleLR(optimizer, max_lr=1.0, total_steps=total, pct_start=warmup / total, cycle_momentum=False)
    for step in range(total):
        assert onecycle(step, warmup, total) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        if step < total - 1:
            expected.step()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 2, 7, 100])
def test_every_schedule_at_every_length(name, warmup):
    """Of runs of 1 to 7 steps and of their resumed places; the peak is never passed and never 0."""
    for total in (1, 2, 7):
        factors = [SCHEDULES[name](step, warmup, total) for step in (0, 0.3, 1, 1.5, 6, 6.9, 7, 50, 1000)]
        assert all(0 < factor <= 1 for factor in factors), factors
        if warmup <= 1:
            assert factors[0] == 1


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("per_epoch", [2, 5, 20])
def test_other_batches_go_on_at_the_same_share_of_the_run(name, warmup, per_epoch):
    """After 13 of 30 steps; twice, of which the second time changes nothing."""
    config = OptimizerConfig(learning_rate=1.0, schedule=name, warmup_steps=warmup)

    def schedule(steps_per_epoch: int) -> Schedule:
        return Schedule(build_optimizer(tiny(), config, fused=False), config, steps_per_epoch=steps_per_epoch, epochs=3)

    state = {**schedule(10).state_dict(), "last_epoch": 13}
    for _ in range(2):
        resumed = schedule(per_epoch)
        resumed.load_state_dict(state)
        place = 13 * per_epoch / 10
        assert resumed.get_last_lr()[0] == pytest.approx(SCHEDULES[name](place, warmup, 3 * per_epoch))
        assert resumed.optimizer.param_groups[0]["lr"] == resumed.get_last_lr()[0]
        state = resumed.state_dict()


@pytest.mark.parametrize("split", [[5, 1, 9, 2], [17], [1, 1, 15]])
def test_the_gradient_is_that_of_all_tokens(split):
    """Batches of unequal length, accumulated as Lightning does: each loss over their number before `backward`."""
    values, weight = torch.randn(17, generator=torch.Generator().manual_seed(0)), nn.Parameter(torch.ones(()))
    mean = GlobalTokenMean()
    for _ in range(2):  # a second step starts from nothing
        weight.grad = None
        for batch in values.split(split):
            mean.add_batch(torch.tensor(float(len(batch))))
            (mean.scale_loss((weight * batch).sum()) / len(split)).backward()
        mean.scale_gradients([weight], len(split))
        assert float(weight.grad) == pytest.approx(float(values.mean()), rel=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_flags_reach_the_optimizer(optimizer, schedule):
    args = train.parse_arguments(["--optimizer", optimizer, "--schedule", schedule, "-lr", "0.5", "--momentum", "0.3"])
    config = OptimizerConfig(**train.pick_arguments(OptimizerConfig, args))
    assert config == OptimizerConfig(optimizer=optimizer, schedule=schedule, learning_rate=0.5, momentum=0.3)
    assert math.isclose(build_optimizer(tiny(), config, fused=False).param_groups[0]["lr"], 0.5)
