"""How a signal ends a run: at a checkpoint from which it goes on exactly."""

import signal
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from torch import distributed

# of a scheduler, of Ctrl-C, of SLURM's --signal=USR1, of a terminal that is closed
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal ended the run; like KeyboardInterrupt, it passes what catches every Exception."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number  # the exit status by a shell's convention


class StopOnSignal(Callback):
    """Ends training after the optimiser step under way, at a checkpoint, on any of SIGNALS.

    While validation sets are evaluated the run goes on to their end, where the epoch's own checkpoint is written. With
    several processes the signal may reach any of them, or all at different steps: after each step they agree, over the
    CPUs. A second signal ends the process at once, but for SIGHUP, of which a terminal may send several.
    """

    def __init__(self, path: Path):
        self.path, self.received, self._group = path, 0, None

    def on_train_start(self, trainer, module) -> None:
        """Replaces Lightning's handler, which knows of no step, and its question to the device at every step."""
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo")
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._install()

    def _install(self) -> None:
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` asks
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        if self.received and number != signal.SIGHUP:
            raise Interrupted(number)
        self.received = self.received or number

    def _agree(self, trainer) -> int:
        """Returns the signal that any process has received, or 0."""
        if trainer.world_size > 1:
            received = torch.tensor(self.received)
            distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self._group)
            self.received = int(received)
        return self.received

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Ends training after a step; runs after the callbacks that average weights, whose state is saved."""
        if is_between_steps(trainer, batch_idx) and (number := self._agree(trainer)):
            trainer.save_checkpoint(self.path)
            self._stop(trainer, number, self.path)

    def on_train_epoch_start(self, trainer, module) -> None:
        """Ends training after an epoch, whose checkpoint is written by now."""
        if number := self._agree(trainer):
            self._stop(trainer, number, self.path.with_name("last.ckpt"))

    on_train_end = on_train_epoch_start  # after the last epoch

    def _stop(self, trainer, number: int, path: Path) -> None:
        if trainer.is_global_zero and path.is_file():
            print(f"{signal.Signals(number).name} at step {trainer.global_step}: {path} goes on from here", flush=True)
        raise Interrupted(number)

    def on_test_start(self, trainer, module) -> None:
        """Lets a signal end the process at once: training is over, and there is nothing to save."""
        self.received = signal.SIGTERM
        self._install()

    def on_validation_start(self, trainer, module) -> None:
        """Does the same where validation sets are evaluated by themselves."""
        if trainer.state.fn == "validate":
            self.on_test_start(trainer, module)


def is_between_steps(trainer, batch_idx: int) -> bool:
    """Returns whether an exact checkpoint can be written after this batch.

    Not while a gradient is half accumulated; nor after an epoch's last batch: between that and the validation sets
    Lightning cannot go on exactly.
    """
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch
