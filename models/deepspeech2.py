"""Deep Speech 2 (Amodei et al. 2015, arXiv:1512.02595v1) with a residual convolutional front end.

    waveform -> log-mel -> SpecAugment -> strided convolutions -> residual CNN blocks
             -> linear -> (bi)directional recurrent layers [-> lookahead] -> classifier -> CTC

Paper to code: recurrent layers (section 3.1) are `RecurrentBlock`; batch normalisation (3.2) is `SequenceBatchNorm`;
GRUs (3.4) are `rnn_type`; convolution over time and frequency (3.5) is `ConvStem`; striding (3.6) is `time_stride`;
row convolution (3.7) is `LookaheadConv`.

Differs from the paper: convolutions are 3x3 and residual, not up to 41x21; GELU in place of a clipped ReLU; layer
normalisation is the default; the two directions of a layer are concatenated, not summed; batches are drawn by duration
from the first epoch, without SortaGrad (3.3).
"""

import math

from torch import Tensor, nn

from models.components.convolution import ConvFrontend, LookaheadConv
from models.components.masks import Lengths, mask_frames
from models.components.recurrent import Norm, RecurrentBlock, RNNType
from models.components.streaming import StreamingEncoder, StreamingError, StreamingStep
from models.ctc import CTCRecognizer, Encoding
from models.mingru.layer import ScanType
from utils.cli.values import PositiveInt


class DeepSpeech2(CTCRecognizer, name="deepspeech2"):
    """Convolutions and a stack of recurrent layers, trained by CTC.

    Args:
        conv_channels: channels of the convolutions.
        time_stride: feature frames per output frame, 2 or 4.
        residual_blocks: residual CNN blocks.
        rnn_type: kind of the recurrent layers.
        rnn_size: hidden units of one direction of a recurrent layer.
        rnn_layers: recurrent layers.
        bidirectional: run each recurrent layer in both directions.
        lookahead: future frames that the row convolution of a unidirectional network sees; 0 for none.
        rnn_conv: frames of a depthwise convolution before each recurrent layer, an odd number; 0 for none.
        rnn_residual: add the input of each recurrent layer to its output, where they are of one size.
        rnn_feedforward: hidden units of a feed-forward module after each recurrent layer; 0 for none.
        rnn_norm: normalisation before each recurrent layer: layer, or the paper's sequence-wise batch norm.
        dropout: in the residual blocks, after each recurrent layer and in the head.
        mingru_scan: how minGRU's states are computed: a scan in linear or log space, or in sequence, as in streams.
    """

    def __init__(self, *, conv_channels: PositiveInt = 32, time_stride: int = 2, residual_blocks: int = 2,
                 rnn_type: RNNType = "gru", rnn_size: PositiveInt = 512, rnn_layers: PositiveInt = 5,
                 bidirectional: bool = True, lookahead: int = 20, rnn_conv: int = 0, rnn_residual: bool = False,
                 rnn_feedforward: int = 0, rnn_norm: Norm = "layer", dropout: float = 0.2,
                 mingru_scan: ScanType = "linear", **shared):
        super().__init__(**shared)
        self.time_stride = time_stride
        self.cnn = ConvFrontend(conv_channels, self.features.size, residual_blocks, time_stride=time_stride,
                                dropout=dropout)
        self.project = nn.Linear(self.cnn.outputs, rnn_size)
        outputs = rnn_size * (2 if bidirectional else 1)
        self.rnn = nn.ModuleList(
            RecurrentBlock(outputs if i else rnn_size, rnn_size, rnn_type=rnn_type, norm=rnn_norm,
                           bidirectional=bidirectional, dropout=dropout, scan=mingru_scan, conv=rnn_conv,
                           residual=rnn_residual, feedforward=rnn_feedforward)
            for i in range(rnn_layers))
        self.lookahead = LookaheadConv(outputs, lookahead) if lookahead and not bidirectional else None
        self.add_heads(outputs, hidden=rnn_size, local_size=rnn_size, dropout=dropout)

    def encode(self, waveforms: Tensor, sample_counts: Tensor) -> Encoding:
        """Returns (B, T, H) recurrent states and (B,) lengths of (B, S) samples and (B,) counts."""
        features, lengths = self.augmented_features(waveforms, sample_counts)  # (B, T, F)
        x, lengths = self.cnn(features, lengths)  # (B, T', C * F')
        x = local = self.project(x)  # (B, T', H)
        for layer in self.rnn:
            x = layer(x, lengths)
        if self.lookahead is not None:
            x = self.lookahead(x, lengths)
        return Encoding(mask_frames(x, lengths), lengths, local)

    def output_lengths(self, frames: Lengths) -> Lengths:
        """Returns the output frames of `frames` feature frames."""
        return self.cnn.output_length(frames)

    def streaming_encoder(self) -> StreamingEncoder:
        """Returns the encoder of one stream. Raises StreamingError that names the flags that the training lacked."""
        flags = ["--no-bidirectional"] if self.rnn[0].backwards is not None else []
        flags += ["--feature_norm global"] if self.features.feature_norm == "utterance" else []
        if flags:
            raise StreamingError(f"this network needs the whole recording; train with {' '.join(flags)}")
        step = StreamingStep(self)
        reach = self.cnn.reach * self.features.hop + self.features.window / 2  # samples
        return StreamingEncoder(step, step.initial(), frame=self.ctc_frame_samples,
                                context=math.ceil(reach / self.ctc_frame_samples),
                                lookahead=0 if self.lookahead is None else self.lookahead.context)
