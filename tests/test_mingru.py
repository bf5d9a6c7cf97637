"""minGRU against the paper's recurrence in float64."""

import pytest
import torch

from models.mingru import LinearRecurrence, MinGRU, g, odd_even_scan, parallel_linear, parallel_log, sequential

SIZES = [(1, 1, 1), (2, 2, 3), (3, 7, 5), (2, 64, 4), (2, 257, 8), (1, 1500, 4)]


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


@pytest.mark.parametrize("scan", [sequential, parallel_linear, parallel_log])
@pytest.mark.parametrize("size", SIZES)
def test_states_are_the_papers(scan, size):
    """To 1e-5 in float32, with gates from wide open to shut."""
    k, v = inputs(size)
    expected = paper(k, v)
    torch.testing.assert_close(scan(k, v), expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(scan(k.float(), v.float()).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scan", [sequential, parallel_linear, parallel_log])
@pytest.mark.parametrize("size", [(1, 1, 2), (2, 5, 3), (1, 8, 2)])
def test_gradcheck(scan, size):
    k, v = (x.requires_grad_() for x in inputs(size, scale=1.0))
    assert torch.autograd.gradcheck(scan, (k, v))


@pytest.mark.parametrize("size", [(2, 6, 3), (1, 1, 1)])
def test_recurrence_gradcheck(size):
    a, b = (x.requires_grad_() for x in inputs(size, scale=1.0))
    assert torch.autograd.gradcheck(LinearRecurrence.apply, (a, b))


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


def test_scan_length_by_length():
    """Every length up to 40: odd and even at each level of the scan."""
    for frames in range(1, 41):
        a, b = (x.float() for x in inputs((1, frames, 2), scale=0.5))
        h, state = odd_even_scan(a, b), torch.zeros(1, 2)
        for t in range(frames):
            state = a[:, t] * state + b[:, t]
            torch.testing.assert_close(h[:, t], state)


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


def test_candidates_are_positive_and_continuous():
    v = torch.linspace(-20, 20, 10_001, dtype=torch.float64)
    assert (g(v) > 0).all()
    assert g(v).diff().abs().max() < 0.01


def test_parameters_are_two_matrices():
    """Linear_z and Linear_h, as in the paper: 2 H (D + 1), a third of what a GRU's inputs take."""
    assert sum(p.numel() for p in MinGRU(7, 5).parameters()) == 2 * 5 * (7 + 1)
