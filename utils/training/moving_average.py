"""The moving average of the weights, taken while training."""

import torch
from lightning.pytorch.callbacks import WeightAveraging


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, which validation, tests and checkpoints use.

    The decay rises with the steps n as (1 + n) / (10 + n) up to its value, so that the random initial weights are soon
    forgotten. A checkpoint holds the trained weights as well as their average, to resume from.
    """

    def __init__(self, decay: float):
        self.decay = decay
        super().__init__(multi_avg_fn=self._average)

    def _average(self, averages, weights, count) -> None:
        if not averages[0].is_floating_point():  # counters
            torch._foreach_copy_(averages, weights)
            return
        decay = min(self.decay, (1 + count.item()) / (10 + count.item()))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def on_load_checkpoint(self, trainer, module, checkpoint) -> None:
        """Restores the trained weights for training; a test uses the average."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, module, checkpoint)
