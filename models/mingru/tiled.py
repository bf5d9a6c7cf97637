"""minGRU's linear scan in PyTorch alone, tile by tile of frames: the fast path on a CPU.

A tile of gates, candidates and states stays in the processor's cache, where one operation at a time costs
little; over whole sequences the same operations would wait for memory, and fusing them by torch.compile
gains little more (`benchmarks/mingru.py --compile`). Only the projections k and v and the states h are
kept for the backward pass, which computes the gates again.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 1 << 18  # elements of a tile: a megabyte in float32
WIDE = 1 << 13  # elements of a frame from which a tile is stepped through frame by frame


def gates(kv: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns 1 - z and z * c of h_t = (1 - z) h_{t-1} + z c, from (B, T, 2, H) k and v; over padding z is 0."""
    k, v = (part.to(_exact_type(part)) for part in kv.unbind(2))
    z = k.sigmoid() if valid is None else k.sigmoid().mul_(valid)
    return 1 - z, candidate(v, v.sigmoid()).mul_(z)


def gate_gradients(v: Tensor, z: Tensor, before: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """Returns dL/dk = G (c - h_{t-1}) z (1 - z) and dL/dv = G z g'(v); G is `grads`, h_{t-1} `before`."""
    s, gz = v.sigmoid(), grads * z
    slope = torch.maximum(torch.addcmul(s, s, s, value=-1), torch.ge(v, 0, out=torch.empty_like(v)))  # g'(v)
    grad_v = slope.mul_(gz)
    return candidate(v, s).sub_(before).mul_(torch.addcmul(gz, gz, z, value=-1)), grad_v


def candidate(v: Tensor, s: Tensor) -> Tensor:
    """Returns g(v), the larger of sigmoid(v) and v + 0.5, which cross at 0 alone. Overwrites s = sigmoid(v)."""
    return torch.maximum(s, v + 0.5, out=s)


class TiledScan(torch.autograd.Function):
    """The fused scan as an autograd function. Padding has states of zero and takes no gradient.

    With G_t the whole gradient of h_t, G_t = dL/dh_t + (1 - z_{t+1}) G_{t+1}: the same recurrence in the other
    direction.
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
                z = shifted(kv[:, :, d, 0], min(begin, begin - past), max(end, end - past)).to(grad.dtype).sigmoid()
                here, ahead = (z[:, 1:], z[:, :-1]) if d == 1 else (z[:, :-1], z[:, 1:])  # ahead in this direction
                grads = grad_h[:, begin:end, d].to(grad.dtype, copy=True)
                if valid is not None:
                    here, grads = here * valid, grads.mul_(valid)
                advance(1 - ahead, grads, grad, from_end=d == 0)
                grad = grads[:, 0 if d == 0 else -1]
                before = shifted(h[:, :, d], begin + past, end + past)
                v = kv[:, begin:end, d, 1].to(grad.dtype)
                grad_kv[:, begin:end, d, 0], grad_kv[:, begin:end, d, 1] = gate_gradients(v, here, before, grads)
        return grad_kv, None


def tiles(kv: Tensor, lengths: Tensor | None, *, from_end: bool) -> Iterator[tuple[int, int, Tensor | None]]:
    """Yields begin, end and a (B, end - begin, 1) mask of valid frames, 1 or 0; None where all are valid.

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
    """Returns all h_t = decay_t h_{t-1} + inputs_t of a (B, T, H) tile, from the (B, H) state before it.

    Overwrites decay and inputs. One operation per frame is slow where frames are narrow; there about sqrt(T) chunks
    advance at once.
    """
    frames = inputs.shape[1]
    wide = inputs.device.type == "cpu" and state.numel() >= WIDE
    chunks = 1 if wide else 1 << frames.bit_length() // 2
    whole = frames - frames % chunks
    pieces = [(0, whole, chunks), (whole, frames, 1)]
    for begin, end, count in reversed(pieces) if from_end else pieces:
        piece = decay[:, begin:end], inputs[:, begin:end], state
        state = step_through(*piece, from_end) if count == 1 else step_chunks(*piece, from_end, count)
    return inputs


def step_through(decay: Tensor, inputs: Tensor, state: Tensor, from_end: bool) -> Tensor:
    """Overwrites inputs with the states, frame by frame, and returns the last one, (B, H)."""
    steps = list(zip(decay.unbind(1), inputs.unbind(1), strict=True))
    for rate, out in reversed(steps) if from_end else steps:
        state = torch.addcmul(out, rate, state, out=out)
    return state


def step_chunks(decay: Tensor, inputs: Tensor, state: Tensor, from_end: bool, chunks: int) -> Tensor:
    """Does the same in all chunks at once, each from a state of zero, and then adds the state before each chunk.

    That state reaches a frame of the chunk through the product of the decays up to it (Blelloch 1990).
    """
    decay, inputs = (x.unflatten(1, (chunks, -1)) for x in (decay, inputs))  # (B, chunks, steps, H)
    steps = list(zip(decay.unbind(2), inputs.unbind(2), strict=True))
    steps = steps[::-1] if from_end else steps
    for (rate, out), (rate_before, before) in zip(steps[1:], steps[:-1], strict=True):
        torch.addcmul(out, rate, before, out=out)
        rate.mul_(rate_before)
    befores = torch.empty_like(inputs[:, :, 0])  # (B, chunks, H), the state before each
    ends = list(zip(*(x.unbind(1) for x in steps[-1]), befores.unbind(1), strict=True))
    for rate, out, before in reversed(ends) if from_end else ends:
        before.copy_(state)
        state = torch.addcmul(out, rate, state)
    inputs.addcmul_(decay, befores[:, :, None])
    return state


def shifted(x: Tensor, begin: int, end: int) -> Tensor:
    """Returns frames `begin` to `end` of (B, T, H); either may lie one frame outside of x, where zeros are."""
    frames = x[:, max(begin, 0) : end]
    return F.pad(frames, (0, 0, max(-begin, 0), max(end - x.shape[1], 0)))


def _exact_type(x: Tensor) -> torch.dtype:
    """Returns the type of gates and states: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)
