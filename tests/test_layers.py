"""Layers against PyTorch's own where it has them, and features against torchaudio's."""

import pytest
import torch
import torchaudio
from conftest import SPEECH, TINY, tiny_network
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models import Recognizer
from models.components.convolution import LookaheadConv
from models.components.features.base import frame_moments
from models.components.features.logmel import LogMel
from models.components.features.mfcc import MFCC
from models.components.masks import mask_frames, reverse_frames
from models.components.recurrent import RecurrentBlock, SequenceBatchNorm
from models.components.specaugment import SpecAugment
from models.components.vtlp import VTLP, warp_frequencies
from models.conformer import RelativeAttention, sinusoids
from models.ctc import consistency_loss
from utils.audio import load_audio
from utils.types import Batch

LENGTHS = torch.tensor([9, 1, 6])


def test_reverse_frames_is_its_own_inverse():
    x = torch.arange(3 * 9.0).reshape(3, 9, 1)
    reverse = reverse_frames(x, LENGTHS)
    assert reverse[2, :6, 0].tolist() == x[2, :6, 0].flip(0).tolist()
    assert torch.equal(reverse[2, 6:], x[2, 6:])
    assert torch.equal(reverse_frames(reverse, LENGTHS), x)


@pytest.mark.parametrize(("kind", "cls"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_two_directions_match_packed_sequences(kind, cls):
    torch.manual_seed(0)
    layer = RecurrentBlock(6, 5, rnn_type=kind, bidirectional=True, norm="layer", dropout=0.0, scan="linear")
    packed = cls(6, 5, batch_first=True, bidirectional=True)
    state = {**layer.forwards.state_dict(),
             **{f"{name}_reverse": value for name, value in layer.backwards.state_dict().items()}}
    packed.load_state_dict(state)
    x = torch.randn(3, 9, 6)
    inputs = nn.functional.gelu(layer.norm(x, LENGTHS))
    expected, _ = pad_packed_sequence(
        packed(pack_padded_sequence(inputs, LENGTHS, batch_first=True, enforce_sorted=False))[0], batch_first=True)
    torch.testing.assert_close(mask_frames(layer(x, LENGTHS), LENGTHS), expected, atol=1e-6, rtol=1e-5)


def test_feed_forward_modules_change_nothing_until_they_learn():
    """A network that gets them begins as it was, and a step of gradient descent moves them."""
    torch.manual_seed(0)
    options = {"rnn_type": "mingru", "bidirectional": True, "norm": "layer", "dropout": 0.0, "scan": "linear",
               "conv": 3, "residual": True}
    plain, wider = RecurrentBlock(8, 4, **options), RecurrentBlock(8, 4, **options, feedforward=16)
    assert not wider.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    x = torch.randn(3, 9, 8)
    assert torch.equal(wider(x, LENGTHS), plain(x, LENGTHS))
    mask_frames(wider(x, LENGTHS), LENGTHS).square().sum().backward()
    with torch.no_grad():
        for weight in wider.feedforward.parameters():
            weight -= 0.1 * weight.grad
    recurrent = plain(x, LENGTHS)
    torch.testing.assert_close(wider(x, LENGTHS), recurrent + wider.feedforward(recurrent))
    assert wider.feedforward(recurrent).abs().min() > 1e-4


def test_batch_norm_sees_valid_frames_only():
    torch.manual_seed(0)
    norm = SequenceBatchNorm(4)
    x = torch.randn(3, 9, 4)
    x[1, 1:] = 1e6
    x[2, 6:] = -1e6
    valid = torch.cat([x[0], x[1, :1], x[2, :6]])
    out = norm(x, LENGTHS)
    expected = (valid - valid.mean(0)) / (valid.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(torch.cat([out[0], out[1, :1], out[2, :6]]), expected, atol=1e-5, rtol=1e-5)
    assert not out[1, 1:].any()


def test_lookahead_is_the_papers_sum():
    torch.manual_seed(0)
    layer, x = LookaheadConv(4, 3), torch.randn(3, 9, 4)
    out, weights = layer(x, LENGTHS), layer.conv.weight[:, 0]  # (H, context + 1)
    for b, length in enumerate(LENGTHS.tolist()):
        for t in range(length):
            expected = sum(weights[:, j] * x[b, t + j] for j in range(4) if t + j < length)
            torch.testing.assert_close(out[b, t], expected, atol=1e-6, rtol=1e-5)


def test_unidirectional_network_sees_only_its_context():
    """A change after the lookahead's horizon cannot reach a frame; the features look at their own window."""
    network = tiny_network("lookahead").eval()
    network.features.feature_norm = "none"
    waveform = torch.randn(1, 32_000) * 0.1
    changed = waveform.clone()
    changed[:, 20_000:] = 0.0
    counts = torch.tensor([32_000])
    with torch.no_grad():
        before, after = (network.encode(one, counts).frames for one in (waveform, changed))
        difference = (before - after).abs().amax(-1)[0]
    first = int((difference > 1e-6).nonzero()[0])
    frame = 20_000 // 160 // 2  # the output frame in which the change happens
    assert frame - 3 - 4 <= first <= frame  # lookahead 3, and the convolutions' own neighbours


def test_known_network_has_14_233_053_parameters():
    network = Recognizer.build("deepspeech2", n_mels=128, time_stride=2, conv_channels=32, residual_blocks=2,
                               rnn_type="gru", rnn_size=512, rnn_layers=3, head="mlp")
    assert sum(p.numel() for p in network.parameters()) == 14_233_053


@pytest.mark.parametrize("n_mels", [40, 80, 128])
def test_log_mel_is_torchaudios(n_mels):
    """The same energies as torchaudio's MelSpectrogram with the same frames, zeros beyond the ends."""
    waveform = load_audio(SPEECH[0])
    ours = LogMel(n_mels=n_mels, feature_norm="none")
    theirs = torchaudio.transforms.MelSpectrogram(n_fft=ours.n_fft, win_length=400, hop_length=160, n_mels=n_mels,
                                                  pad_mode="constant")
    features, lengths = ours(waveform[None], torch.tensor([len(waveform)]))
    expected = theirs(waveform).clamp_min(1e-6).log().T
    assert lengths.item() == len(features[0]) == len(expected) == 1 + len(waveform) // 160
    torch.testing.assert_close(features[0], expected, atol=1e-3, rtol=1e-4)
    assert ours.filters.any(dim=0).all()


def test_mfcc_is_the_cosine_transform():
    """DCT-II of the log-mel energies with orthonormal scale, written out in float64."""
    waveform, n_mels = load_audio(SPEECH[0]), 40
    counts = torch.tensor([len(waveform)])
    log_mel, _ = LogMel(n_mels=n_mels, feature_norm="none")(waveform[None], counts)
    mfcc, lengths = MFCC(n_mels=n_mels, n_mfcc=13, feature_norm="none")(waveform[None], counts)
    k, n = torch.arange(13.0).double()[:, None], torch.arange(n_mels).double()
    basis = (2 / n_mels) ** 0.5 * torch.cos(torch.pi / n_mels * (n + 0.5) * k)
    basis[0] /= 2**0.5
    assert mfcc.shape == (1, lengths.item(), 13) and mfcc.dtype == torch.float32
    torch.testing.assert_close(mfcc[0].double(), log_mel[0].double() @ basis.T, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("cls", "size"), [(LogMel, 80), (MFCC, 40)])
def test_normalisations(cls, size):
    waveforms = [load_audio(path) for path in SPEECH[:3]]
    batches = [(w[None], torch.tensor([len(w)])) for w in waveforms]
    each = cls()
    for waveform, count in batches:
        features, lengths = each(waveform, count)
        mean, variance = frame_moments(features, lengths)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-2, rtol=0)
    corpus = cls(feature_norm="global")
    corpus.fit_global_statistics(batches)
    frames = torch.cat([corpus(*batch)[0][0] for batch in batches])
    torch.testing.assert_close(frames.mean(0), torch.zeros(size), atol=1e-3, rtol=0)
    torch.testing.assert_close(frames.std(0), torch.ones(size), atol=1e-2, rtol=0)


def test_specaugment_masks_within_its_policy():
    torch.manual_seed(0)
    augment = SpecAugment(freq_masks=2, freq_width=5, time_masks=2, time_width=30, time_share=0.2)
    lengths = torch.tensor([100, 40] * 100)
    features = torch.ones(200, 100, 80)
    masked = augment(features, lengths) == 0
    assert features.all(), "the input was changed"
    bins = masked.all(dim=1).sum(-1)
    frames = masked.all(dim=2)
    assert bins.max() <= 10 and (bins > 0).float().mean() > 0.9
    assert frames[0::2].sum(-1).max() <= 20 and frames[1::2].sum(-1).max() <= 8
    assert (frames.sum(-1) > 0).float().mean() > 0.7
    assert not frames[1::2, 40:].any(), "masks on padding only"
    assert torch.equal(augment.eval()(features, lengths), features)
    assert len({tuple(row.nonzero().flatten().tolist()) for row in frames[0::2]}) > 50, "drawn by utterance"


def test_specaugment_fills_with_the_mean_of_features_that_are_not_normalised():
    torch.manual_seed(0)
    network = Recognizer.build("deepspeech2", **{**TINY["deepspeech2"], "feature_norm": "none", "freq_masks": 1,
                                                 "freq_width": 80, "time_masks": 0})
    features, lengths = torch.randn(20, 50, 80) - 4, torch.tensor([50, 30] * 10)
    features = mask_frames(features, lengths)
    masked = network.specaugment(features, lengths)
    for before, after, length in zip(features, masked, lengths.tolist(), strict=True):
        changed = before[:length] != after[:length]
        torch.testing.assert_close(after[:length][changed], before[:length].mean().expand(int(changed.sum())))
        assert not after[length:].any(), "padding was filled"
    assert (masked != features).any()


def test_relative_attention_is_the_papers_sum():
    """(q_i + u) . k_j + (q_i + v) . W_R r_{i-j}, written out for each head, query and key; padding has no weight."""
    torch.manual_seed(0)
    size, heads, frames, length = 8, 2, 6, 5
    layer, width = RelativeAttention(size, heads, dropout=0.0), size // heads
    nn.init.normal_(layer.content_bias)
    nn.init.normal_(layer.position_bias)
    x = torch.randn(1, frames, size)
    q, k, v = layer.qkv(layer.norm(x))[0].unflatten(-1, (3, heads, width)).unbind(1)  # (T, h, D / h) each
    context, rates = torch.zeros(frames, heads, width), 10_000 ** -(torch.arange(0, size, 2) / size)
    for i in range(frames):
        r = torch.stack([torch.cat([((i - j) * rates).sin(), ((i - j) * rates).cos()]) for j in range(length)])
        r = layer.position(r).unflatten(-1, (heads, width))
        for h in range(heads):
            content, position = q[i, h] + layer.content_bias[h, 0], q[i, h] + layer.position_bias[h, 0]
            scores = k[:length, h] @ content + r[:, h] @ position
            context[i, h] = (scores / width**0.5).softmax(0) @ v[:length, h]
    out = layer(x, torch.tensor([length]), sinusoids(frames, size, x.device))
    torch.testing.assert_close(out[0], layer.out(context.flatten(1)), atol=1e-5, rtol=1e-5)


def test_vtlp_reads_the_spectrum_at_warped_frequencies():
    """A peak at a formant moves by the factor of its utterance; nothing moves in evaluation."""
    torch.manual_seed(0)
    warp = VTLP(80, 0.1)
    features = torch.zeros(64, 3, 80)
    features[..., 40] = 1.0  # a ridge at one frequency
    factors = warp.centres[40] / warp.centres[warp(features)[:, 0].argmax(-1)]
    assert 0.85 < factors.min() < 0.95 < 1.05 < factors.max() < 1.15
    assert torch.equal(warp.eval()(features), features)
    frequencies = torch.tensor([0.0, 1000.0, 4000.0, 8000.0])
    expected = torch.tensor([[0.0, 900.0, 3600.0, 8000.0], [0.0, 1100.0, 4400.0, 8000.0]])
    torch.testing.assert_close(warp_frequencies(frequencies, torch.tensor([[0.9], [1.1]])), expected)
    ramp = warp.train()(torch.linspace(0, 1, 80).expand(8, 2, 80))
    assert (ramp.diff(dim=-1) >= 0).all() and (ramp != torch.linspace(0, 1, 80)).any()


def test_consistency_draws_two_views_together():
    """CR-CTC: nothing where the views are the same; else both divergences, with a gradient to one side of each."""
    network = Recognizer.build("deepspeech2", n_mels=20, conv_channels=4, residual_blocks=1, rnn_size=16, rnn_layers=1,
                               rnn_type="mingru", dropout=0.0, consistency_weight=0.5, freq_masks=0, time_masks=0)
    batch = Batch(torch.randn(2, 16_000), torch.tensor([16_000, 9_000]), torch.tensor([[3, 4, 5], [6, 7, 0]]),
                  torch.tensor([3, 2]), ["", ""], ["a", "b"], [])
    same = network.train().loss(network.encode(batch.waveforms, batch.sample_counts), batch)
    assert abs(same["consistency"]) < 1e-4 and abs(same["loss"] - same["ctc"]) < 1e-4
    alone = network.eval().loss(network.encode(batch.waveforms, batch.sample_counts), batch)
    assert alone.keys() == {"loss"}
    torch.testing.assert_close(same["ctc"], alone["loss"])

    scores = torch.randn(4, 5, 3, requires_grad=True)
    lengths = torch.tensor([5, 2, 5, 2])
    loss = consistency_loss(scores.log_softmax(-1), lengths)
    loss.backward()
    first, second = scores.detach().softmax(-1).chunk(2)
    valid = torch.arange(5) < lengths[:2, None]
    torch.testing.assert_close(loss.detach(), 0.5 * ((first - second) * (first / second).log()).sum(-1)[valid].sum())
    expected = 0.5 * torch.cat([first - second, second - first]) * torch.cat([valid, valid])[..., None]
    torch.testing.assert_close(scores.grad, expected)


@pytest.mark.parametrize("options", [{"freq_warp": 0.1, "features": "mfcc"}, {"freq_warp": 0.6}, {"freq_warp": -0.1},
                                     {"consistency_weight": -1.0}, {"consistency_weight": float("nan")}])
def test_augmentation_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Recognizer.build("deepspeech2", rnn_size=8, rnn_layers=1, **options)
