"""Convolutions and recurrent layers, run as the sound arrives; they give what the whole recording at once would give.

Convolutions see a bounded number of frames on both sides, so they run over windows whose edges are dropped. The state
of a recurrent layer after a frame is all that it keeps of the past. The row convolution waits for its future frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError


class StreamingError(UserError):
    """A network that needs the whole recording."""


class StreamingEncoder:
    """One stream through the encoder of a unidirectional Deep Speech 2.

    Args:
        network: has the layers `cnn`, `project`, `rnn` and `lookahead`.
    """

    def __init__(self, network):
        self.network = network
        self.frame = network.ctc_frame_samples
        # CTC frames beyond which the convolutions see nothing: one per convolution at their rate, and two for the stem
        # and the analysis window.
        self.context = 2 + 2 * len(network.cnn.blocks)
        self.samples = network.project.weight.new_zeros(0, dtype=torch.float32)  # that frames to come still need
        self.begin = 0  # CTC frame at which they begin
        self.done = 0  # CTC frames that left the convolutions
        self.states = [None] * len(network.rnn)
        self.waiting = None  # (1, T, H) recurrent outputs that the row convolution still needs

    def feed(self, samples: Tensor) -> Tensor | None:
        """Returns the (1, T, H) encoder output that (S,) more samples at 16 kHz complete, or None."""
        self.samples = torch.cat([self.samples, samples.to(self.samples.device)])
        ready = len(self.samples) // self.frame - self.context + self.begin  # CTC frames with all their future
        return self._advance(ready) if ready > self.done else None

    def finish(self) -> Tensor | None:
        """Returns the rest of the encoder output; nothing can be fed afterwards."""
        samples = self.begin * self.frame + len(self.samples)
        return self._advance(self.network.output_frames(samples), last=True) if samples else None

    def _advance(self, end: int, last: bool = False) -> Tensor:
        """Returns the output of the frames from `done` to `end`, those that wait for the row convolution apart."""
        x = self.network.project(self._convolve()[:, self.done - self.begin : end - self.begin])  # (1, T, H)
        self.done = end
        keep = max(self.begin, end - self.context)
        self.samples = self.samples[(keep - self.begin) * self.frame :]
        self.begin = keep
        for i, layer in enumerate(self.network.rnn):
            x, self.states[i] = layer.step(x, self.states[i])
        return x if self.network.lookahead is None else self._look_ahead(x, last)

    def _convolve(self) -> Tensor:
        count = torch.tensor([len(self.samples)], device=self.samples.device)
        features, lengths = self.network.features(self.samples[None], count)
        return self.network.cnn(features.to(self.network.project.weight.dtype), lengths)[0]

    def _look_ahead(self, x: Tensor, last: bool) -> Tensor:
        """Returns the row convolution of the (1, T, H) outputs whose future is known: at the end all of them."""
        layer = self.network.lookahead
        x = x if self.waiting is None else torch.cat([self.waiting, x], dim=1)
        self.waiting = x[:, max(0, x.shape[1] - layer.context) :]
        if last:
            x = F.pad(x, (0, 0, 0, layer.context))
        if x.shape[1] <= layer.context:
            return x[:, :0]
        return layer.conv(x.transpose(1, 2)).transpose(1, 2)
