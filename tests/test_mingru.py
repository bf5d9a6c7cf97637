"""minGRU against the paper's recurrence in float64: every form, both directions, padding, gradients."""

import pytest
import torch

from models.components.masks import mask_frames, reverse_frames
from models.components.recurrent import RecurrentLayer
from models.mingru import tiled as mingru_tiled
from models.mingru.fused import fused_scan
from models.mingru.layer import MinGRU, g, parallel_log, sequential
from models.mingru.tiled import TiledScan, advance

SIZES = [(1, 1, 1), (2, 2, 3), (3, 7, 5), (2, 64, 4), (2, 257, 8), (1, 1500, 4)]
PADDED = [((3, 9, 5), (9, 1, 6)), ((2, 1, 3), (1, 1)), ((4, 70, 2), (33, 70, 1, 32)), ((2, 12, 3), (7, 5))]


def inputs(size, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(size))
    return [scale * torch.randn(size, generator=generator, dtype=dtype) for _ in range(2)]


def paper(k, v):
    """h_t = (1 - z_t) h_{t-1} + z_t g(v_t), written out."""
    h, states = torch.zeros_like(k[:, 0]), []
    for t in range(k.shape[1]):
        z = 1 / (1 + torch.exp(-k[:, t]))
        h = (1 - z) * h + z * torch.where(v[:, t] >= 0, v[:, t] + 0.5, 1 / (1 + torch.exp(-v[:, t])))
        states.append(h)
    return torch.stack(states, 1)


def paper_by_utterance(kv, lengths):
    """Each direction of each utterance by itself, without padding: (B, T, D, 2, H) to (B, T, D, H)."""
    h = torch.zeros_like(kv[:, :, :, 0])
    rows = []
    for one, length in zip(kv, lengths, strict=True):
        k, v = one[:length].unbind(2)  # (T, D, H)
        there, back = paper(k[None, :, 0], v[None, :, 0])[0], paper(k[None, :, 1].flip(1), v[None, :, 1].flip(1))[0]
        rows.append(torch.cat([torch.stack([there, back.flip(0)], 1), h[0, length:]]))
    return torch.stack(rows)


def parallel_linear(k, v):
    """One direction of the fused scan, without padding."""
    return fused_scan(torch.stack([k, v], dim=2)[:, :, None], None)[:, :, 0]


def recurrent_layer(kv, lengths, scan):
    """Both directions of a layer whose two linear layers pick their k and v: (B, T, 2, 2, H) to (B, T, 2, H)."""
    hidden = kv.shape[-1]
    layer, pick = RecurrentLayer(4 * hidden, hidden, rnn_type="mingru", scan=scan), torch.eye(4 * hidden)
    for direction, rows in ((layer.forwards, pick[: 2 * hidden]), (layer.backwards, pick[2 * hidden :])):
        direction.linear.weight.data.copy_(rows)
        direction.linear.bias.data.zero_()
    return mask_frames(layer(kv.flatten(2), lengths), lengths).unflatten(-1, (2, hidden))


def with_gradient(function, kv, *arguments):
    """States, and the gradient of a fixed weighted sum over all of them, padding included."""
    kv = kv.detach().clone().requires_grad_()
    h = function(kv, *arguments)
    weights = torch.randn(h.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (h * weights.to(h.dtype)).sum().backward()
    return h.detach(), kv.grad


def assert_is_the_papers(scan, size, lengths, dtype=torch.float32, atol=1e-5, rtol=1e-5):
    """States and gradients in both directions, against float64."""
    batch, frames, hidden = size
    generator = torch.Generator().manual_seed(frames)
    kv = 3 * torch.randn(batch, frames, 2, 2, hidden, generator=generator, dtype=torch.float64)
    kv = kv.to(dtype).double()  # what every precision can hold
    expected = with_gradient(paper_by_utterance, kv, lengths)
    found = with_gradient(scan, kv.to(dtype), torch.tensor(lengths))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, atol=atol, rtol=rtol)
        assert all(not row[length:].any() for row, length in zip(one, lengths, strict=True)), "padding"


@pytest.fixture(params=["step by step", "in chunks"])
def tiled(request, monkeypatch):
    """Small tiles, so that these sizes have several, and either way through a tile."""
    monkeypatch.setattr(mingru_tiled, "TILE", 60)
    monkeypatch.setattr(mingru_tiled, "WIDE", 1 if request.param == "step by step" else 1 << 30)


@pytest.mark.parametrize("scan", [sequential, parallel_linear, parallel_log])
@pytest.mark.parametrize("size", SIZES)
def test_states_are_the_papers(scan, size, tiled):
    """To 1e-5 in float32, with gates from wide open to shut."""
    k, v = inputs(size)
    expected = paper(k, v)
    torch.testing.assert_close(scan(k, v), expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(scan(k.float(), v.float()).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scan", ["linear", "log", "sequential"])
@pytest.mark.parametrize(("size", "lengths"), PADDED)
def test_both_directions_leave_padding_out(scan, size, lengths, tiled):
    assert_is_the_papers(lambda kv, n: recurrent_layer(kv, n, scan), size, lengths)


@pytest.mark.parametrize(("size", "lengths"), PADDED)
def test_the_fused_scan_leaves_padding_out(size, lengths, tiled):
    assert_is_the_papers(fused_scan, size, lengths)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(dtype, tiled):
    """States and gradients are those of float32, rounded when they are written."""
    tolerance = 4 * torch.finfo(dtype).eps
    assert_is_the_papers(TiledScan.apply, (3, 40, 5), (40, 1, 23), dtype, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("scan", [sequential, parallel_linear, parallel_log])
@pytest.mark.parametrize("size", [(1, 1, 2), (2, 5, 3), (1, 8, 2)])
def test_gradcheck(scan, size, tiled):
    k, v = (x.requires_grad_() for x in inputs(size, scale=1.0))
    assert torch.autograd.gradcheck(scan, (k, v))


def test_a_gate_of_zero_takes_the_papers_side():
    """g'(0) is 1, as in v >= 0, in every form."""
    kv = torch.zeros(1, 3, 2, 2)
    gradients = [with_gradient(lambda x, scan=scan: scan(*x.unbind(2)), kv)[1]
                 for scan in (parallel_linear, sequential)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("scan", [parallel_linear, parallel_log])
@pytest.mark.parametrize("extreme", [60.0, 1e4])
def test_saturated_gates_stay_finite(scan, extreme):
    """Gates that are exactly 0 or 1 in float32, over a long utterance, forward and backward."""
    k = extreme * torch.randn(1, 700, 4, generator=torch.Generator().manual_seed(0))
    v = torch.randn(1, 700, 4, generator=torch.Generator().manual_seed(1))
    k.requires_grad_()
    h = scan(k, v)
    h.sum().backward()
    torch.testing.assert_close(h, sequential(k, v), atol=1e-5, rtol=1e-5)
    assert torch.isfinite(k.grad).all()


@pytest.mark.parametrize("from_end", [False, True])
def test_advance_length_by_length(from_end, tiled):
    """Every length up to 70, so with all numbers of frames beyond the last whole chunk, from a state."""
    for frames in range(1, 71):
        decay, inputs_ = (x.float().sigmoid() for x in inputs((2, frames, 3)))
        state = torch.full((2, 3), 2.0)
        states = advance(decay.clone(), inputs_.clone(), state, from_end=from_end)
        for t in reversed(range(frames)) if from_end else range(frames):
            state = decay[:, t] * state + inputs_[:, t]
            torch.testing.assert_close(states[:, t], state)


def test_step_is_the_parallel_form():
    """Frame by frame, as streaming does it, the layer gives the states of its parallel form."""
    torch.manual_seed(0)
    layer, x = MinGRU(6, 5), torch.randn(2, 33, 6)
    expected, last = layer(x)
    h = torch.zeros(2, 5)
    for t in range(x.shape[1]):
        h = layer(x[:, t : t + 1], h)[1]
        torch.testing.assert_close(h, expected[:, t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(h, last)


def test_initial_state_of_the_sequential_form():
    """Two halves with the state carried over are the whole."""
    k, v = inputs((2, 10, 3))
    whole = sequential(k, v)
    first = sequential(k[:, :4], v[:, :4])
    torch.testing.assert_close(torch.cat([first, sequential(k[:, 4:], v[:, 4:], first[:, -1])], 1), whole)


def test_two_directions_are_two_layers():
    """One product for both is a layer, and another over the reversed frames; checkpoints keep their two names."""
    torch.manual_seed(0)
    layer = RecurrentLayer(6, 5, rnn_type="mingru")
    assert set(layer.state_dict()) == {f"{way}.linear.{part}" for way in ("forwards", "backwards")
                                       for part in ("weight", "bias")}
    x, lengths = torch.randn(3, 9, 6), torch.tensor([9, 1, 6])
    back = reverse_frames(layer.backwards(reverse_frames(x, lengths))[0], lengths)
    expected = torch.cat([layer.forwards(x)[0], back], dim=-1)
    out = layer(x, lengths)
    for row, other, length in zip(out, expected, lengths.tolist(), strict=True):
        torch.testing.assert_close(row[:length], other[:length])
    out.sum().backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())


def test_autocast_rounds_the_product_and_scans_in_float32():
    """What comes out is float32's states of the rounded k and v; an error of bfloat16 does not add up over frames."""
    torch.manual_seed(0)
    layer, x = MinGRU(8, 4), torch.randn(2, 600, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, last = layer(x)
        k, v = layer.linear(x).chunk(2, dim=-1)
    expected = sequential(k.double(), v.double())
    assert (h.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(h.double(), expected, atol=0.0, rtol=torch.finfo(torch.bfloat16).eps)


def test_candidates_are_positive_and_continuous():
    v = torch.linspace(-20, 20, 10_001, dtype=torch.float64)
    assert (g(v) > 0).all()
    assert g(v).diff().abs().max() < 0.01


def test_parameters_are_two_matrices():
    """Linear_z and Linear_h, as in the paper: 2 H (D + 1), a third of what a GRU's inputs take."""
    assert sum(p.numel() for p in MinGRU(7, 5).parameters()) == 2 * 5 * (7 + 1)
