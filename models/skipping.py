"""Optimiser steps whose gradient is not finite: taken back, whichever the optimiser, counted and named."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from utils.errors import UserError


class TrainingError(UserError):
    """A run that cannot go on."""


class Snapshot:
    """Copies of an optimiser's parameters and state, to take a step back without asking the device how it went."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer, self.is_first = optimizer, not optimizer.state
        self.copies = {key: value.clone() for key, value in self._tensors()}

    @torch.no_grad()
    def restore_unless(self, finite: Tensor) -> None:
        """Puts everything back where `finite`, a boolean scalar on the device, is false.

        State that the step created becomes zero; all of it, that of the first step, goes, whichever the optimiser.
        """
        for key, value in self._tensors():
            before = self.copies[key] if key in self.copies else torch.zeros_like(value)
            torch.where(finite.to(value.device), value, before, out=value)
        if self.is_first and not finite:
            self.optimizer.state.clear()

    def _tensors(self) -> Iterator[tuple[tuple, Tensor]]:
        for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
            yield (id(parameter), ""), parameter.data
            for name, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield (id(parameter), name), value


class SkipNonFinite:
    """Leaves weights and optimiser as they are where a gradient is not finite, and says which utterances gave it.

    On a CPU the gradient's norm is known at once. On a GPU it is known when the GPU comes to it, for which a host that
    asked would wait at every step. So there the GPU decides by itself, and the host looks at the norms of many steps
    together. Fused Adam takes `found_inf` for that, as it does from a gradient scaler. For other optimisers every step
    copies the weights and the optimiser's state, and the GPU chooses between old and new; the host waits at the first
    step only, and for an optimiser that keeps its state on the CPU.

    Args:
        optimizer: whose steps are watched.
        patience: steps in a row that may be skipped.
        look_every: steps after which the host looks at the norms, on a GPU.
    """

    def __init__(self, optimizer: Optimizer, *, patience: int, look_every: int):
        self.optimizer, self.patience, self.look_every = optimizer, patience, look_every
        self.skipped, self.in_a_row = 0, 0  # steps
        self._waiting: list[tuple[int, Tensor, list[str]]] = []  # steps that the host has not looked at
        self._snapshot: Snapshot | None = None
        self._finite: Tensor | None = None
        optimizer.register_step_post_hook(self._after_step)

    def watch(self, norm: Tensor, *, step: int, ids: list[str], scaled: bool) -> None:
        """Takes the norm of the gradients that the step to come would use, its number and its utterances.

        `scaled` steps, those of float16's gradient scaler, are skipped by the scaler itself and only counted here.
        Raises TrainingError after `patience` skipped steps in a row.
        """
        if not scaled and (norm.device.type != "cpu" or not norm.isfinite()):
            if isinstance(self.optimizer, Adam) and self.optimizer.defaults["fused"]:
                self.optimizer.found_inf = (~norm.isfinite()).float()
            else:
                self._snapshot, self._finite = Snapshot(self.optimizer), norm.isfinite()
        self._waiting.append((step, norm, ids))
        if norm.device.type == "cpu" or len(self._waiting) >= self.look_every:
            self.report()

    def _after_step(self, *_) -> None:
        self.optimizer.found_inf = None
        if self._snapshot is not None:
            self._snapshot.restore_unless(self._finite)
            self._snapshot = None

    def report(self) -> None:
        """Counts and names the skipped steps since the last report."""
        waiting, self._waiting = self._waiting, []
        finite = torch.stack([norm for _, norm, _ in waiting]).isfinite().tolist() if waiting else []
        for (step, _, ids), fine in zip(waiting, finite, strict=True):
            self.in_a_row = 0 if fine else self.in_a_row + 1
            if not fine:
                self._name(step, ids)

    def _name(self, step: int, ids: list[str]) -> None:
        self.skipped += 1
        print(f"step {step} skipped, its gradient is not finite ({self.skipped} so far); utterances: {' '.join(ids)}",
              flush=True)
        if self.in_a_row >= self.patience:
            raise TrainingError(f"{self.patience} steps in a row had a gradient that is not finite, the last with "
                                f"{', '.join(ids[:3])}; a lower --learning_rate, more --warmup_steps or "
                                "--precision 32-true may help")
