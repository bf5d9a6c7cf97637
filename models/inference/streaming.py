"""Text while somebody still speaks: a unidirectional Deep Speech 2, run as the sound arrives.

Trained in parallel, run in steps: minGRU's state after a frame is all that it keeps of the past, and
the same is true of a GRU's or an LSTM's. Convolutions see a bounded number of frames on both sides, so
they run over windows whose edges are dropped, and the row convolution waits for its future frames.
What comes out is what the whole recording at once would give.
"""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.components.recurrent import RecurrentBlock
from models.deepspeech2 import DeepSpeech2
from models.recognizer import Recognizer
from utils.audio import SAMPLE_RATE, from_samples
from utils.errors import UserError

LARGEST_CHUNK = 1 << 20  # bytes; a WAV whose header states a larger one is damaged
CHUNK = 0.25  # seconds of audio that are read and heard at a time


class StreamingError(UserError):
    """A network, or a stream, that cannot be run as the sound arrives; the message is one line."""


class StreamingRecognizer:
    """One stream: `feed` it with samples, `finish` it, and what they return, joined, is the text.

    Raises StreamingError for a network that needs the whole recording.
    """

    def __init__(self, network: Recognizer):
        refuse_unless_causal(network)
        self.network = network.eval()
        self.frame = network.ctc_frame_samples
        # Frames of CTC beyond which the convolutions see nothing: one a convolution at their rate, and
        # two for the stem and the analysis window.
        self.context = 2 + 2 * len(network.cnn.blocks)
        self.samples = torch.zeros(0)  # not yet beyond the context of what comes next
        self.begin = 0  # CTC frame at which they begin
        self.done = 0  # CTC frames that left the convolutions
        self.states = [None] * len(network.rnn)
        self.waiting = None  # (T, H) recurrent outputs that the row convolution still needs
        self.last, self.text = network.tokenizer.blank, ""

    @property
    def latency(self) -> float:
        """Seconds of future audio that a frame waits for, the chunk apart."""
        lookahead = self.network.lookahead.context if self.network.lookahead is not None else 0
        return (self.context + lookahead) * self.frame / SAMPLE_RATE

    @torch.inference_mode()
    def feed(self, samples: Tensor) -> str:
        """(S,) samples at 16 kHz to the text that they complete."""
        self.samples = torch.cat([self.samples, samples])
        ready = len(self.samples) // self.frame - self.context + self.begin  # CTC frames with all their future
        return self._advance(ready) if ready > self.done else ""

    @torch.inference_mode()
    def finish(self) -> str:
        """The rest of the text; nothing can be fed afterwards."""
        if not self.begin * self.frame + len(self.samples):
            return ""
        total = self.network.output_frames(self.begin * self.frame + len(self.samples))
        return self._advance(total, last=True)

    def _advance(self, end: int, last: bool = False) -> str:
        """Hears the frames from `done` to `end`."""
        frames, _ = self._convolve()
        x = self.network.project(frames[:, self.done - self.begin : end - self.begin])  # (1, T, H)
        self.done = end
        keep = max(self.begin, end - self.context)
        self.samples = self.samples[(keep - self.begin) * self.frame :]
        self.begin = keep
        for i, layer in enumerate(self.network.rnn):
            x, self.states[i] = advance_layer(layer, x, self.states[i])
        if self.network.lookahead is not None:
            x = self._look_ahead(x, last)
        return self._spell(self.network.head(x)[0].argmax(dim=-1).tolist())

    def _convolve(self) -> tuple[Tensor, Tensor]:
        count = torch.tensor([len(self.samples)])
        features, lengths = self.network.features(self.samples[None], count)
        return self.network.cnn(features.to(next(self.network.parameters()).dtype), lengths)

    def _look_ahead(self, x: Tensor, last: bool) -> Tensor:
        """(1, T, H) outputs to those whose future is known: at the end all of them."""
        conv = self.network.lookahead
        x = x if self.waiting is None else torch.cat([self.waiting, x], dim=1)
        self.waiting = x[:, max(0, x.shape[1] - conv.context) :]
        if last:
            x = F.pad(x, (0, 0, 0, conv.context))
        if x.shape[1] <= conv.context:
            return x[:, :0]
        return conv.conv(x.transpose(1, 2)).transpose(1, 2)

    def _spell(self, path: list[int]) -> str:
        """Greedy decoding that goes on from the frame before; single spaces."""
        tokenizer, before = self.network.tokenizer, len(self.text)
        for symbol in path:
            if symbol not in (self.last, tokenizer.blank):
                piece = tokenizer.decode([symbol])
                self.text += piece if self.text and not self.text.endswith(" ") else piece.removeprefix(" ")
            self.last = symbol
        return self.text[before:]


def refuse_unless_causal(network: Recognizer) -> None:
    """Raises StreamingError that names the flags of training that a stream needs."""
    if not isinstance(network, DeepSpeech2):
        raise StreamingError(f"a {network.name} network needs the whole recording; train --model deepspeech2")
    wanted = {"bidirectional": "--no-bidirectional"} if network.config["bidirectional"] else {}
    if network.config["feature_norm"] == "utterance":
        wanted["feature_norm"] = "--feature_norm global"
    if wanted:
        raise StreamingError(f"this network needs the whole recording; train with {' '.join(wanted.values())}")


def advance_layer(layer: RecurrentBlock, x: Tensor, state) -> tuple[Tensor, object]:
    """(1, T, H) next frames of a unidirectional layer and its state to its outputs and the state after."""
    lengths = torch.tensor([x.shape[1]])
    return layer.forwards(F.gelu(layer.norm(x, lengths)), state)


def read_stream(stream: BinaryIO, seconds: float = CHUNK) -> Iterator[Tensor]:
    """Chunks of (S,) samples at 16 kHz: of a WAV file by its header, of anything else as raw 16-bit mono.

    Raises StreamingError.
    """
    start = stream.read(12)
    if start[:4] == b"RIFF" and start[8:] == b"WAVE":
        rate, channels, kind = read_wav_header(stream)
        if rate != SAMPLE_RATE:
            raise StreamingError(f"a stream must come at {SAMPLE_RATE} Hz, not {rate}; `sox - -r 16000` changes it")
        start = b""
    else:
        channels, kind = 1, np.dtype("<i2")
    size = int(seconds * SAMPLE_RATE) * channels * kind.itemsize
    scale = 1.0 if kind.kind == "f" else float(1 << (8 * kind.itemsize - 1))
    while data := start + stream.read(size - len(start)):
        whole = len(data) // (channels * kind.itemsize) * channels * kind.itemsize
        samples = np.frombuffer(data[:whole], dtype=kind).reshape(-1, channels)
        if len(samples):
            yield from_samples(samples.astype(np.float32) / scale, SAMPLE_RATE, name="standard input")
        start = data[whole:]
        if len(data) < size:
            return


def read_wav_header(stream: BinaryIO) -> tuple[int, int, np.dtype]:
    """Rate in Hz, channels and sample type of a WAV whose first 12 bytes are read; stops before the samples.

    Raises StreamingError.
    """
    rate = channels = kind = None
    while len(head := stream.read(8)) == 8:
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            break
        if size > LARGEST_CHUNK:
            kind = None
            break
        body = stream.read(size + size % 2)
        if name == b"fmt " and len(body) >= 16:
            code, channels, rate, _, _, bits = np.frombuffer(body[:16], dtype="<u2,<u2,<u4,<u4,<u2,<u2")[0].tolist()
            kind = {(1, 16): "<i2", (1, 32): "<i4", (3, 32): "<f4"}.get((1 if code == 0xFFFE else code, bits))
    if not kind or not channels:
        raise StreamingError("standard input is a WAV of a kind that cannot be streamed: 16-bit, 32-bit or float")
    return rate, channels, np.dtype(kind)
