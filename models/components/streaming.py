"""Convolutions and recurrent layers, run as the sound arrives; they give what the whole recording at once would give.

Convolutions see a bounded number of frames on both sides, so they run over windows whose edges are dropped. The state
of a recurrent layer after a frame is all that it keeps of the past. The row convolution waits for its future frames.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.convolution import depthwise
from utils.errors import UserError


class StreamingError(UserError):
    """A network that needs the whole recording."""


class StreamingStep(nn.Module):
    """Computes the next frames of a stream by a unidirectional Deep Speech 2, from the states before them.

    Args:
        network: has the layers `features`, `cnn`, `project`, `rnn`, `lookahead` and `head`.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def initial(self) -> list[Tensor]:
        """Returns the states before the first frame: of each recurrent layer, then of the row convolution."""
        zeros, lookahead = self.network.project.weight.new_zeros, self.network.lookahead
        states = [zeros(shape) for layer in self.network.rnn for shape in layer.state_shapes]
        return states if lookahead is None else [*states, zeros(1, lookahead.context, lookahead.conv.in_channels)]

    def forward(self, samples: Tensor, frames: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Returns (1, N, V) log-probabilities and the states after them.

        With a row convolution the log-probabilities are those of as many frames earlier as it looks ahead.

        Args:
            samples: (1, S) that begin at a CTC frame.
            frames: (N,) of their CTC frames, those to go on with; -1 stands for one beyond the end of the stream.
            states: what the call before returned, at first `initial`.
        """
        network, states, after = self.network, list(states), []
        count = torch.full((1,), samples.shape[1], device=samples.device)
        features, lengths = network.features(samples, count)
        x = network.cnn(features.to(network.project.weight.dtype), lengths)[0]
        x = network.project(x[:, frames.clamp_min(0)])  # (1, N, H)
        for layer in network.rnn:
            before, states = states[: len(layer.state_shapes)], states[len(layer.state_shapes) :]
            x, *state = layer.step(x, *before)
            after += state
        if network.lookahead is not None:
            x = torch.cat([*states, x * (frames >= 0)[:, None]], dim=1)  # the states that are left: earlier outputs
            after.append(x[:, -network.lookahead.context :])
            x = depthwise(network.lookahead.conv, x)
        return network.head(x).float().log_softmax(dim=-1), *after


class StreamingEncoder:
    """One stream: keeps the samples and the states that frames to come still need.

    Args:
        step: computes as `StreamingStep.forward` does.
        states: before the first frame.
        frame: samples from one CTC frame to the next.
        context: CTC frames on either side beyond which the convolutions see nothing.
        lookahead: future CTC frames that the row convolution sees.
    """

    def __init__(self, step: Callable[..., Sequence[Tensor]], states: Sequence[Tensor], *, frame: int, context: int,
                 lookahead: int):
        self.step, self.states, self.frame, self.context = step, states, frame, context
        self.samples = states[0].new_zeros(0, dtype=torch.float32)  # that frames to come still need
        self.begin = 0  # CTC frame at which they begin
        self.done = 0  # CTC frames that went through the recurrent layers
        self.lookahead = self.early = lookahead  # log-probabilities that come before those of the first frame

    def feed(self, samples: Tensor) -> Tensor | None:
        """Returns the (1, T, V) log-probabilities that (S,) more samples at 16 kHz complete, or None."""
        self.samples = torch.cat([self.samples, samples.to(self.samples.device)])
        ready = len(self.samples) // self.frame - self.context + self.begin  # CTC frames with all their future
        return self._advance(ready) if ready > self.done else None

    def finish(self) -> Tensor | None:
        """Returns the rest of the log-probabilities; nothing can be fed afterwards."""
        samples = self.begin * self.frame + len(self.samples)
        return self._advance(1 + samples // self.frame, beyond=self.lookahead) if samples else None

    def _advance(self, end: int, beyond: int = 0) -> Tensor:
        """Returns the log-probabilities that the frames from `done` to `end` complete, and `beyond` frames of zeros."""
        frames = torch.arange(self.done - self.begin, end - self.begin, device=self.samples.device)
        frames = F.pad(frames, (0, beyond), value=-1)
        log_probs, *self.states = self.step(self.samples[None], frames, *self.states)
        keep = max(self.begin, end - self.context)
        self.samples = self.samples[(keep - self.begin) * self.frame :]
        self.done, self.begin = end, keep
        early, self.early = self.early, max(0, self.early - log_probs.shape[1])
        return log_probs[:, early:]
