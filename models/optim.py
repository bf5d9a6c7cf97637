"""Optimisers and schedules by name, and the gradient of a global batch.

A new optimiser or schedule is one function here under `OPTIMIZERS` or `SCHEDULES`; its name is then a choice of
`--optimizer` or `--schedule`, and an argument that it needs is a field of `OptimizerConfig`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from utils.cli.values import nonnegative_float, nonnegative_int, positive_float, share

# -- optimisers ------------------------------------------------------------------------------
# Each takes parameter groups (their weight decay is set), the configuration, and whether it may be fused: a gradient
# scaler unscales the gradients between the backward pass and the step, which fused optimisers would do again.
# What an optimiser keeps must be tensors on the device of the parameters: see `Snapshot`.


def adamw(groups: list[dict], config: "OptimizerConfig", fused: bool) -> Optimizer:
    """Returns AdamW, whose weight decay is apart from the gradient (Loshchilov and Hutter 2019, arXiv:1711.05101v3)."""
    return AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.98), fused=fused)


def adam(groups: list[dict], config: "OptimizerConfig", fused: bool) -> Optimizer:
    """Returns Adam (Kingma and Ba 2015, arXiv:1412.6980v9); weight decay is added to the gradient."""
    return Adam(groups, lr=config.learning_rate, betas=(config.momentum, 0.98), fused=fused)


def sgd(groups: list[dict], config: "OptimizerConfig", fused: bool) -> Optimizer:
    """Returns stochastic gradient descent with Nesterov momentum, which Deep Speech 2 was trained with, at 0.99."""
    return SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)


OPTIMIZERS: dict[str, Callable[[list[dict], "OptimizerConfig", bool], Optimizer]] = {
    "adamw": adamw, "adam": adam, "sgd": sgd}

# -- schedules -------------------------------------------------------------------------------
# Each returns the factor of the peak learning rate at a step, counted from 0 (a fraction where a run was resumed with
# other batches), given the steps of the warm-up (0 for none) and of the whole run.


def cosine(step: float, warmup: int, total: int) -> float:
    """Rises linearly from 1 / warmup to 1, then falls as half a cosine to 1 % of the peak."""
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    return _half_cosine(_progress(step, warmup, total), 1.0, 0.01)


def noam(step: float, warmup: int, total: int) -> float:
    """Rises linearly, then falls as the inverse square root of the step (Vaswani et al. 2017, section 5.3)."""
    warmup = max(1, warmup)
    return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


def onecycle(step: float, warmup: int, total: int) -> float:
    """Rises as half a cosine from 1/25 of the peak, then falls to 1/250,000 of it.

    The super-convergence schedule (Smith and Topin 2018, arXiv:1708.07120v3) in the form of PyTorch's `OneCycleLR`,
    for the learning rate alone: momentum stays.
    """
    if step < warmup - 1:
        return _half_cosine(step / (warmup - 1), 1 / 25, 1.0)
    return _half_cosine(_progress(step, max(0, warmup - 1), total - 1), 1.0, 1 / 250_000)


def _progress(step: float, warmup: int, total: int) -> float:
    """Returns the share of the steps after the warm-up that are over, 0 to 1."""
    return min(1.0, (step - warmup) / max(1, total - warmup))


def _half_cosine(progress: float, start: float, end: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float, int, int], float]] = {"cosine": cosine, "noam": noam, "onecycle": onecycle}

# -- both together ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser of a run and its schedule.

    Args:
        optimizer: AdamW, Adam, or SGD with momentum
        learning_rate: peak learning rate
        weight_decay: weight decay of matrices and filters; biases and norms have none
        momentum: momentum of SGD, beta 1 of Adam
        schedule: learning rate schedule after the warm-up
        warmup_steps: optimiser steps in which the learning rate rises to its peak
    """

    optimizer: Literal[tuple(OPTIMIZERS)] = "adamw"
    learning_rate: Annotated[float, positive_float] = 5e-4
    weight_decay: Annotated[float, nonnegative_float] = 1e-2
    momentum: Annotated[float, share] = 0.9
    schedule: Literal[tuple(SCHEDULES)] = "cosine"
    warmup_steps: Annotated[int, nonnegative_int] = 1000


def build_optimizer(network: nn.Module, config: OptimizerConfig, *, fused: bool) -> Optimizer:
    """Returns the optimiser of a network's trainable parameters.

    The learning rate, weight decay and so on stay those of `config` when a checkpoint's state is loaded.
    """
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    decayed = {name for name, p in trained.items() if p.dim() > 1 and not name.endswith("bias")}
    groups = [{"params": [p for name, p in trained.items() if (name in decayed) is decays], "weight_decay": decay}
              for decays, decay in ((True, config.weight_decay), (False, 0.0))]
    optimizer = OPTIMIZERS[config.optimizer](groups, config, fused)
    optimizer.register_load_state_dict_pre_hook(_keep_options)
    return optimizer


def _keep_options(optimizer: Optimizer, saved: dict) -> dict:
    groups = [{**group, "params": old["params"]}
              for group, old in zip(optimizer.param_groups, saved["param_groups"], strict=True)]
    return {**saved, "param_groups": groups}


class Schedule(LambdaLR):
    """A schedule by name, for an optimiser that takes `steps_per_epoch` steps in each of `epochs`.

    When it goes on from a checkpoint, the peak and the shape are those of the new configuration. Where the epochs had
    another number of steps before, with batches of another size, it goes on at the same share of the run.
    """

    def __init__(self, optimizer: Optimizer, config: OptimizerConfig, *, steps_per_epoch: int, epochs: int):
        self.steps_per_epoch, self.offset = steps_per_epoch, 0.0  # the place in the schedule is step + offset
        factor, total = SCHEDULES[config.schedule], steps_per_epoch * epochs
        super().__init__(optimizer, lambda step: factor(max(0, step + self.offset), config.warmup_steps, total))

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes the place in the schedule from a checkpoint, and the learning rate from the schedule."""
        step, offset, before = (state_dict[name] for name in ("last_epoch", "offset", "steps_per_epoch"))
        if before != self.steps_per_epoch:
            offset = (step + offset) * self.steps_per_epoch / before - step
        kept = {"base_lrs": self.base_lrs, "steps_per_epoch": self.steps_per_epoch, "offset": offset}
        super().load_state_dict({**state_dict, **kept})
        self._last_lr = [peak * factor(step) for peak, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


# -- the gradient ----------------------------------------------------------------------------


class GlobalTokenMean:
    """Makes the gradient of a step that of the mean loss per token of its global batch, however that is cut.

    A step sees A batches one after the other (accumulation) on each of N processes. Batch (a, n) has the summed loss
    L[a, n] and T[a, n] tokens, and what is wanted is the gradient of

        sum L[a, n] / sum T[a, n],

    in which every token counts the same. Lightning divides what a training step returns by A before the backward
    pass, whose gradients add up over a, and DDP averages them over n. With l[a, n] returned they become

        1 / (A N) * sum grad l[a, n].

    The number of tokens of the batches to come is not known when the first one's gradient is computed. So each loss
    is divided by the tokens of the first batch, t[0], where t[a] is the mean of T[a, n] over n (a plain sum would
    overflow float16), and before the step all gradients are multiplied by A * t[0] / sum t[a]:

        A t[0] / sum t[a] * 1 / (A N) * sum grad L[a, n] / t[0]  =  sum grad L[a, n] / (N sum t[a]),

    where N sum t[a] = sum T[a, n]. With one batch per step the factor is 1 and nothing is multiplied.
    """

    def __init__(self):
        self.tokens: list[Tensor] = []  # t[0], ..., of the step under way

    def add_batch(self, tokens: Tensor) -> Tensor:
        """Counts a batch into the step under way by its mean tokens over the processes; returns t[a], at least 1."""
        self.tokens.append(tokens.clamp_min(1.0))
        return self.tokens[-1]

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Returns what to call `backward` on for the summed loss of the batch that was added last."""
        return loss / self.tokens[0]

    def scale_gradients(self, parameters: Iterable[nn.Parameter], accumulated: int) -> None:
        """Ends the step: multiplies the gradients by A t[0] / sum t[a], where A is `accumulated`."""
        tokens, self.tokens = self.tokens, []
        if len(tokens) == accumulated == 1:
            return
        factor = accumulated * tokens[0] / torch.stack(tokens).sum()
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)
