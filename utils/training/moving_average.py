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
        super().__init__()

    def setup(self, trainer, module, stage) -> None:
        """Keeps the average on the training device, where Lightning would leave it on the CPU; its count on the CPU."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = torch.zeros((), dtype=torch.long)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Averages after each optimiser step."""
        if trainer.global_step > self._latest_update_step:
            self._average(module)
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def _average(self, module) -> None:
        average, count = self._average_model, int(self._average_model.n_averaged)
        decay = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        pairs = [*zip(average.module.parameters(), module.parameters(), strict=True),
                 *zip(average.module.buffers(), module.buffers(), strict=True)]
        averages, weights = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for kept, counter in (pair for pair in pairs if not pair[0].is_floating_point()):
            kept.copy_(counter)
        average.n_averaged += 1

    def on_validation_epoch_start(self, trainer, module) -> None:
        """Validates the average while training; whoever validates a checkpoint after that means its own weights."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, module)

    def on_validation_epoch_end(self, trainer, module) -> None:
        """Goes back to the trained weights."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, module)

    def on_load_checkpoint(self, trainer, module, checkpoint) -> None:
        """Restores the trained weights for training; a test uses the average."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, module, checkpoint)
