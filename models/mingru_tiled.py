"""minGRU's recurrence in PyTorch alone, tile of frames by tile of frames: what a CPU runs.

A tile of gates, candidates and states stays in the processor's cache, where one operation at a time costs
little; over whole sequences the same operations would wait for memory, and fusing them by torch.compile
gains little more (`benchmarks/mingru.py --compile`). Only the projections k and v and the states h are
kept for the backward pass, which computes the gates again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 1 << 18  # elements of a tile: a megabyte in float32
WIDE = 1 << 12  # elements of a frame from which stepping through a tile beats the odd-even scan


def gates(kv: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """1 - z and z * c, of h_t = (1 - z) h_{t-1} + z c; over padding z is 0."""
    k, v = kv.to(_exact_type(kv)).unbind(2)
    z = k.sigmoid() if valid is None else k.sigmoid().mul_(valid)
    c = v.clamp(max=0).sigmoid_().add_(v.clamp(min=0))  # g(v), without torch.where, slow on a CPU
    return 1 - z, c.mul_(z)


def gate_gradients(kv: Tensor, valid: Tensor | None, before: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """dL/dk = G (c - h_{t-1}) z (1 - z) and dL/dv = G z g'(v), of G `grads` and h_{t-1} `before`."""
    k, v = kv.to(grads.dtype).unbind(2)
    z = k.sigmoid() if valid is None else k.sigmoid().mul_(valid)
    s = v.clamp(max=0).sigmoid_()
    slope = torch.maximum(torch.addcmul(s, s, s, value=-1), torch.ge(v, 0, out=torch.empty_like(v)))  # g'(v)
    grad_v = slope.mul_(grads).mul_(z)
    c = s.add_(v.clamp(min=0))
    return c.sub_(before).mul_(grads).mul_(z).mul_(1 - z), grad_v


class TiledScan(torch.autograd.Function):
    """(B, T, D, 2, H) projections k and v of D directions, and (B,) lengths or None, to (B, T, D, H) states.

    The second direction runs from an utterance's last frame to its first. Padding has states of zero and
    takes no gradient. With G_t the gradient that reaches h_t in all, G_t = dL/dh_t + (1 - z_{t+1}) G_{t+1}:
    the same recurrence in the other direction.
    """

    @staticmethod
    def forward(ctx, kv: Tensor, lengths: Tensor | None) -> Tensor:
        batch, frames, directions, _, hidden = kv.shape
        h = kv.new_empty(batch, frames, directions, hidden)
        for d in range(directions):
            state = kv.new_zeros(batch, hidden, dtype=_exact_type(kv))
            for begin, end, valid in tiles(kv, lengths, from_end=d == 1):
                states = advance(*gates(kv[:, begin:end, d], valid), state, from_end=d == 1)
                state = states[:, 0 if d == 1 else -1]
                h[:, begin:end, d] = states if valid is None else states * valid
        ctx.save_for_backward(kv, h, lengths)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_h: Tensor) -> tuple[Tensor, None]:
        kv, h, lengths = ctx.saved_tensors
        grad_kv = torch.empty_like(kv)
        for d in range(kv.shape[2]):
            past = 1 if d == 1 else -1  # from a frame to the one before it in this direction
            grad = torch.zeros_like(h[:, 0, d], dtype=_exact_type(kv))
            for begin, end, valid in tiles(kv, lengths, from_end=d == 0):
                decay = shifted(kv[:, :, d, 0], begin - past, end - past).to(grad.dtype).neg().sigmoid_()  # 1 - z
                grads = grad_h[:, begin:end, d].to(grad.dtype, copy=True)
                grads = advance(decay, grads if valid is None else grads.mul_(valid), grad, from_end=d == 0)
                grad = grads[:, 0 if d == 0 else -1]
                before = shifted(h[:, :, d], begin + past, end + past)
                grad_k, grad_v = gate_gradients(kv[:, begin:end, d], valid, before, grads)
                grad_kv[:, begin:end, d, 0], grad_kv[:, begin:end, d, 1] = grad_k, grad_v
        return grad_kv, None


def tiles(kv: Tensor, lengths: Tensor | None, *, from_end: bool):
    """Yields begin, end and the (B, end - begin, 1) share of each frame that is valid; None where all are.

    On a GPU, where launches cost more than memory, one tile is the whole sequence.
    """
    batch, frames, hidden = kv.shape[0], kv.shape[1], kv.shape[4]
    on_cpu = kv.device.type == "cpu"
    size = max(TILE // (batch * hidden), 1) if on_cpu else frames
    shortest = frames if lengths is None else int(lengths.min()) if on_cpu else 0
    starts = range(0, frames, size)
    for begin in reversed(starts) if from_end else starts:
        end = min(begin + size, frames)
        if end <= shortest:
            yield begin, end, None
        else:
            position = torch.arange(begin, end, device=kv.device)
            yield begin, end, (position < lengths[:, None])[..., None].to(_exact_type(kv))


def advance(decay: Tensor, inputs: Tensor, state: Tensor, *, from_end: bool) -> Tensor:
    """All h_t = decay_t h_{t-1} + inputs_t of a (B, T, H) tile, from the (B, H) state before. Overwrites inputs."""
    if inputs.device.type == "cpu" and state.numel() >= WIDE:
        steps = list(zip(decay.unbind(1), inputs.unbind(1), strict=True))
        for rate, out in reversed(steps) if from_end else steps:
            state = torch.addcmul(out, rate, state, out=out)
        return inputs
    if from_end:
        return advance(decay.flip(1), inputs.flip(1), state, from_end=False).flip(1)
    inputs[:, 0].addcmul_(decay[:, 0], state)
    return odd_even_scan(decay, inputs)


def odd_even_scan(a: Tensor, b: Tensor) -> Tensor:
    """All states of h_t = a_t h_{t-1} + b_t with h_{-1} = 0; a, b and the result are (B, T, H).

    Two neighbouring steps are one step with coefficients (a_1 a_0, a_1 b_0 + b_1). Joining all
    pairs halves the length; the shorter recurrence gives every odd state, and one more step from
    those gives the even ones (Blelloch 1990).
    """
    frames = b.shape[1]
    if frames == 1:
        return b.clone()
    a_even, a_odd = a[:, 0 : frames - 1 : 2], a[:, 1::2]
    b_even, b_odd = b[:, 0 : frames - 1 : 2], b[:, 1::2]
    h_odd = odd_even_scan(a_odd * a_even, torch.addcmul(b_odd, a_odd, b_even))
    h = torch.empty_like(b)
    h[:, 1::2] = h_odd
    h[:, 0] = b[:, 0]
    torch.addcmul(b[:, 2::2], a[:, 2::2], h_odd[:, : (frames - 1) // 2], out=h[:, 2::2])
    return h


def shifted(x: Tensor, begin: int, end: int) -> Tensor:
    """Frames `begin` to `end` of (B, T, H), either of which may lie one beyond x's, where zeros are."""
    frames = x[:, max(begin, 0) : end]
    return F.pad(frames, (0, 0, max(-begin, 0), max(end - x.shape[1], 0)))


def _exact_type(x: Tensor) -> torch.dtype:
    """Of gates and states: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)
