"""Conformer (Gulati et al. 2020, arXiv:2005.08100v1), a convolution-augmented Transformer encoder, trained by CTC.

    waveform -> features -> SpecAugment -> strided convolutions -> linear -> dropout -> Conformer blocks
             -> classifier -> CTC

Paper to code: multi-headed self-attention (section 2.1) is `RelativeAttention`; the convolution module (2.2)
`ConvolutionModule`; the feed-forward module (2.3) `FeedForward`; a block with two half-step feed-forward modules (2.4)
`ConformerBlock`. The convolution module has layer normalisation in place of batch normalisation: an utterance's output
then depends on no other utterance, in training too; its kernel has an odd number of frames, 31 for the paper's 32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.convolution import ConvFrontend, depthwise
from models.components.encoder_layer import EncoderLayer
from models.components.feedforward import FeedForward
from models.components.masks import Lengths, length_mask, mask_frames
from models.ctc import CTCRecognizer, Encoding
from utils.cli.values import PositiveInt


class RelativeAttention(nn.Module):
    """Multi-head self-attention with relative positions (Dai et al. 2019, arXiv:1901.02860v3, section 3.3).

    Query i and key j, both projected from the same frames, meet in

        (q_i + u) . k_j + (q_i + v) . W_R r_{i-j}

    with learnt u and v, and sinusoids r of the distance alone.
    """

    def __init__(self, size: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.position = nn.Linear(size, size, bias=False)  # W_R
        self.content_bias = nn.Parameter(torch.zeros(heads, 1, size // heads))  # u
        self.position_bias = nn.Parameter(torch.zeros(heads, 1, size // heads))  # v
        self.out = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor, distances: Tensor) -> Tensor:
        """Returns (B, T, D) of (B, T, D) frames with (B,) lengths and the (2 T - 1, D) `sinusoids`."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        r = self.position(distances).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (h, 2 T - 1, D / h)
        scores = (q + self.content_bias) @ k.mT + by_key((q + self.position_bias) @ r.mT)  # (B, h, T, T)
        padding = ~length_mask(lengths, x.shape[1])[:, None, None]  # (B, 1, 1, T)
        weights = (scores / math.sqrt(q.shape[-1])).masked_fill(padding, -torch.inf).softmax(dim=-1)
        x = self.dropout(weights) @ v  # (B, h, T, D / h)
        return self.dropout(self.out(x.transpose(1, 2).flatten(2)))


def by_key(scores: Tensor) -> Tensor:
    """Returns (B, h, T, T) scores of query i and key j from (B, h, T, 2 T - 1) scores by distance i - j, T - 1 first.

    Score (i, j) is in column T - 1 - i + j. With one column of padding a reshape shifts each row by one place more than
    the row before (Dai et al. 2019, appendix B).
    """
    batch, heads, frames, _ = scores.shape
    rows = F.pad(scores, (1, 0)).view(batch, heads, 2 * frames, frames)
    return rows[:, :, 1:].reshape(batch, heads, frames, 2 * frames - 1)[..., :frames]


def sinusoids(frames: int, size: int, device: torch.device) -> Tensor:
    """Returns (2 T - 1, D) sines and cosines of the distances T - 1 to 1 - T (Vaswani et al. 2017, section 3.5)."""
    distances = torch.arange(frames - 1, -frames, -1, device=device, dtype=torch.float32)
    angles = distances[:, None] * 10_000 ** -(torch.arange(0, size, 2, device=device) / size)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ConvolutionModule(nn.Module):
    """A gated linear unit, a depthwise convolution over time, normalisation and Swish, and a linear layer."""

    def __init__(self, size: int, kernel: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.gate = nn.Linear(size, 2 * size)
        self.context = kernel // 2  # frames that the convolution sees on either side
        self.depthwise = nn.Conv1d(size, size, kernel, groups=size)
        self.out = nn.Sequential(nn.LayerNorm(size), nn.SiLU(), nn.Linear(size, size), nn.Dropout(dropout))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns (B, T, D) of (B, T, D) frames with (B,) lengths, beyond which the convolution reads zeros."""
        x = mask_frames(F.glu(self.gate(self.norm(x)), dim=-1), lengths)
        return self.out(depthwise(self.depthwise, F.pad(x, (0, 0, self.context, self.context))))


class ConformerBlock(EncoderLayer):
    """Half a feed-forward step, attention, convolution, half a feed-forward step; each added to its input."""

    def __init__(self, size: int, heads: int, kernel: int, dropout: float):
        super().__init__()
        self.before = FeedForward(size, 4 * size, dropout)
        self.attention = RelativeAttention(size, heads, dropout)
        self.convolution = ConvolutionModule(size, kernel, dropout)
        self.after = FeedForward(size, 4 * size, dropout)
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, lengths: Tensor, distances: Tensor) -> Tensor:
        """Returns (B, T, D) of (B, T, D) frames with (B,) lengths and the (2 T - 1, D) `sinusoids`."""
        x = x + self.before(x) / 2
        x = x + self.attention(x, lengths, distances)
        x = x + self.convolution(x, lengths)
        return self.norm(x + self.after(x) / 2)


class Conformer(CTCRecognizer, name="conformer"):
    """Strided convolutions and Conformer blocks, trained by CTC.

    Args:
        conv_channels: channels of the strided convolutions.
        time_stride: feature frames per output frame, 2 or 4.
        encoder_size: features of an encoder frame.
        encoder_layers: Conformer blocks.
        attention_heads: heads of the self-attention, which share encoder_size.
        conv_kernel: encoder frames that the depthwise convolution sees, an odd number.
        dropout: after each module, in the feed-forward modules and on the attention weights.
    """

    def __init__(self, *, conv_channels: PositiveInt = 144, time_stride: int = 4, encoder_size: PositiveInt = 144,
                 encoder_layers: PositiveInt = 16, attention_heads: PositiveInt = 4, conv_kernel: int = 31,
                 dropout: float = 0.1, **shared):
        super().__init__(**shared)
        if attention_heads < 1 or encoder_size % (2 * attention_heads):
            raise ValueError(f"encoder_size {encoder_size} must be a multiple of twice attention_heads "
                             f"{attention_heads}")
        if conv_kernel < 1 or not conv_kernel % 2:
            raise ValueError(f"conv_kernel {conv_kernel} must be odd")
        self.time_stride = time_stride
        self.cnn = ConvFrontend(conv_channels, self.features.size, 0, time_stride=time_stride, dropout=dropout)
        self.project = nn.Linear(self.cnn.outputs, encoder_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(ConformerBlock(encoder_size, attention_heads, conv_kernel, dropout)
                                    for _ in range(encoder_layers))
        self.add_heads(encoder_size, hidden=encoder_size, local_size=encoder_size, dropout=dropout)

    def encode(self, waveforms: Tensor, sample_counts: Tensor) -> Encoding:
        """Returns (B, T, D) encoder output and (B,) lengths of (B, S) samples and (B,) counts."""
        features, lengths = self.augmented_features(waveforms, sample_counts)  # (B, T, F)
        x, lengths = self.cnn(features, lengths)  # (B, T', C * F')
        x = local = self.project(F.silu(x))  # (B, T', D)
        x, distances = self.dropout(x), sinusoids(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x, lengths, distances)
        return Encoding(mask_frames(x, lengths), lengths, local)

    def output_lengths(self, frames: Lengths) -> Lengths:
        """Returns the output frames of `frames` feature frames."""
        return self.cnn.output_length(frames)
