"""Masked convolutions: padding never reaches a valid frame.

Images are (B, C, T, F), so that layer normalisation over features needs no transpose.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.components.encoder_layer import EncoderLayer
from models.components.masks import Lengths, length_mask, mask_frames


def halve(lengths: Lengths) -> Lengths:
    """Returns half of `lengths`, rounded up."""
    return (lengths + 1) // 2


class MaskedConv2d(nn.Conv2d):
    """3x3 convolution with padding 1 that reads zeros beyond each utterance's length."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1):
        super().__init__(channels_in, channels_out, kernel_size=3, stride=stride, padding=1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns (B, C', T', F') of (B, C, T, F) with (B,) lengths."""
        mask = length_mask(lengths, x.shape[2])[:, None, :, None]  # (B, 1, T, 1)
        return super().forward(x * mask.to(x.dtype))  # on a CPU several times as fast as filling by a mask

    def output_length(self, lengths: Lengths) -> Lengths:
        """Returns the frames after this layer."""
        return (lengths - 1) // self.stride[0] + 1


class ConvStem(nn.Module):
    """One or two stride-2 convolutions over time and frequency, for a time stride of 2 or 4."""

    def __init__(self, channels: int, time_stride: int):
        super().__init__()
        if time_stride not in (2, 4):
            raise ValueError(f"time_stride {time_stride} must be 2 or 4")
        inputs = (1, channels)[: time_stride // 2]
        self.convs = nn.ModuleList(MaskedConv2d(count, channels, stride=2) for count in inputs)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, C, T', F') of (B, T, F) features, and their (B,) lengths."""
        x = features[:, None]
        for i, conv in enumerate(self.convs):
            x = conv(F.gelu(x) if i else x, lengths)
            lengths = conv.output_length(lengths)
        return x, lengths

    def output_length(self, length: Lengths) -> Lengths:
        """Returns the outputs along time or frequency of `length` inputs."""
        for conv in self.convs:
            length = conv.output_length(length)
        return length


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016): norm, GELU, dropout and convolution, twice."""

    def __init__(self, channels: int, features: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in range(2))
        self.convs = nn.ModuleList(MaskedConv2d(channels, channels) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns the block's output for (B, C, T, F) with (B,) lengths, of the same shape."""
        residual = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(self.dropout(F.gelu(norm(x))), lengths)
        return x + residual


class ConvFrontend(EncoderLayer):
    """A strided stem, then residual blocks."""

    def __init__(self, channels: int, n_mels: int, blocks: int, *, time_stride: int, dropout: float):
        super().__init__()
        self.time_stride = time_stride
        self.stem = ConvStem(channels, time_stride)
        bins = self.stem.output_length(n_mels)
        self.blocks = nn.ModuleList(ResidualBlock(channels, bins, dropout) for _ in range(blocks))
        self.outputs = channels * bins
        self.reach = time_stride - 1 + 2 * blocks * time_stride  # feature frames on either side that an output sees

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, T', outputs) of (B, T, F) features, and their (B,) lengths."""
        x, lengths = self.stem(features, lengths)  # (B, C, T', F')
        for block in self.blocks:
            x = block(x, lengths)
        return x.transpose(1, 2).flatten(2), lengths

    def output_length(self, frames: Lengths) -> Lengths:
        """Returns the frames after the stem."""
        return self.stem.output_length(frames)


class VGG(EncoderLayer):
    """Four 3x3 convolutions with pooling by 2 over time and frequency after every second one (Hori et al. 2017)."""

    def __init__(self, channels: int, n_mels: int):
        super().__init__()
        counts = (1, channels, channels, 2 * channels, 2 * channels)
        self.convs = nn.ModuleList(MaskedConv2d(*pair) for pair in zip(counts, counts[1:], strict=False))
        self.outputs = 2 * channels * self.output_length(n_mels)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (B, T', outputs) of (B, T, F) features, and their (B,) lengths."""
        x = features[:, None]
        for first, second in zip(self.convs[::2], self.convs[1::2], strict=True):
            x = F.relu(second(F.relu(first(x, lengths)), lengths))
            x = F.max_pool2d(mask_frames(x, lengths), 2, ceil_mode=True)  # nothing is below 0, so padding never wins
            lengths = halve(lengths)
        return x.transpose(1, 2).flatten(2), lengths

    @staticmethod
    def output_length(length: Lengths) -> Lengths:
        """Returns the outputs along time or frequency of `length` inputs."""
        return halve(halve(length))


class LookaheadConv(nn.Module):
    """Row convolution (Amodei et al. 2015, section 3.7): r_t = sum_{j=0..context} w_j * h_{t+j}.

    It gives a unidirectional network `context` frames of the future, by one filter per feature.
    """

    def __init__(self, features: int, context: int):
        super().__init__()
        self.context = context
        self.conv = nn.Conv1d(features, features, context + 1, groups=features, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns (B, T, H) of the same shape; frames beyond each length count as zeros."""
        return depthwise(self.conv, F.pad(mask_frames(x, lengths), (0, 0, 0, self.context)))


class ShortConv(nn.Module):
    """Depthwise convolution over neighbouring frames, added to its input: `kernel` frames, one filter per feature.

    The gates of a minGRU see one frame alone, so that the order of neighbouring frames is lost on it; Mamba (Gu and
    Dao 2023, arXiv:2312.00752) has such a convolution before each recurrence for the same reason. Here it is centred,
    or, where `causal`, sees the present and the past.
    """

    def __init__(self, features: int, kernel: int, *, causal: bool):
        super().__init__()
        if kernel < 1 or not kernel % 2:
            raise ValueError(f"rnn_conv {kernel} must be odd, or 0 for none")
        self.past = kernel - 1 if causal else kernel // 2
        self.conv = nn.Conv1d(features, features, kernel, groups=features)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns (B, T, H) of the same shape; frames beyond each length count as zeros."""
        future = self.conv.kernel_size[0] - 1 - self.past
        return self.add(x, F.pad(mask_frames(x, lengths), (0, 0, self.past, future)))

    def add(self, x: Tensor, padded: Tensor) -> Tensor:
        """Returns x, (B, T, H), plus the convolution of (B, T + kernel - 1, H), which is x between its neighbours."""
        return x + depthwise(self.conv, padded)


def depthwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Returns what a convolution with one filter per feature gives, (B, T - kernel + 1, H) of (B, T, H).

    It takes the frames for images of one row, which PyTorch convolves in half to two thirds of the time on a CPU.
    """
    rows = x.transpose(1, 2)[:, :, None]  # (B, H, 1, T)
    filters = conv.weight.unflatten(1, (1, 1))  # whose gradient has the weight's strides, as DDP's buckets want it
    return F.conv2d(rows, filters, conv.bias, groups=conv.groups)[:, :, 0].transpose(1, 2)
