"""minGRU's linear scan as one Triton kernel forward and one backward: the fast path on CUDA.

A program has one utterance, one direction and BLOCK_H channels, and walks through the frames in tiles of
BLOCK_T: it reads k and v, computes gates and candidates, scans the tile, and carries the last row on, in
float32. The forward pass writes the states only; the backward pass reads k, v, h and dL/dh, computes the
gates again, and writes dL/dk and dL/dv. So inputs and outputs are the only tensors of the sequence's length.
The second direction, and the backward pass of the first, begin at the utterance's own last frame by the way
frames are indexed. The forward pass reads the next tile while it scans one.

`models/mingru/kernels.py` compares them with the tiles before they are used.
`TRITON_INTERPRET=1`, set before Triton is imported, runs the kernels on CPU tensors.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_T, BLOCK_H = 32, 64  # fixed, not tuned at run time: another order of additions would change a run's bits
# So few registers that a GPU of 132 processors runs all programs of 32 utterances, two directions of 512, at once.
OPTIONS = {"num_warps": 4, "maxnreg": 128}


class TritonScan(torch.autograd.Function):
    """The fused scan as an autograd function. Padding has states of zero and takes no gradient."""

    @staticmethod
    def forward(ctx, kv: Tensor, lengths: Tensor | None) -> Tensor:
        batch, frames, directions, _, hidden = kv.shape
        kv = kv.contiguous()
        h = kv.new_empty(batch, frames, directions, hidden)
        if lengths is None:
            lengths = torch.full((batch,), frames, device=kv.device)
        _launch(_forward_kernel, kv, (kv, lengths, h))
        ctx.save_for_backward(kv, lengths, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_h: Tensor) -> tuple[Tensor, None]:
        kv, lengths, h = ctx.saved_tensors
        grad_kv = torch.empty_like(kv)
        _launch(_backward_kernel, kv, (kv, lengths, h, grad_h.contiguous(), grad_kv))
        return grad_kv, None


def _launch(kernel, kv: Tensor, tensors: tuple[Tensor, ...]) -> None:
    batch, frames, directions, _, hidden = kv.shape
    block = min(BLOCK_H, triton.next_power_of_2(hidden))
    exact = tl.float64 if kv.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(kv):
        kernel[batch * directions, triton.cdiv(hidden, block)](
            *tensors, frames, hidden, DIRECTIONS=directions, BLOCK_T=BLOCK_T, BLOCK_H=block, EXACT=exact,
            **OPTIONS)


@triton.jit
def _after(rate_1, input_1, rate_2, input_2):
    """Joins two steps h -> rate h + input to one, the first before the second."""
    return rate_1 * rate_2, rate_2 * input_1 + input_2


@triton.jit
def _scan(rates, inputs, state):
    """Returns all h_t = rates_t h_{t-1} + inputs_t of a (BLOCK_T, BLOCK_H) tile from the state before, and the last."""
    rates, inputs = tl.associative_scan((rates, inputs), 0, _after)
    states = rates * state[None, :] + inputs
    last = tl.arange(0, states.shape[0]) == states.shape[0] - 1
    return states, tl.sum(tl.where(last[:, None], states, 0.0), 0)


@triton.jit
def _frame(step, length, from_end):
    """Returns the frame of a step; steps beyond the length are frames of padding."""
    return tl.where((step < length) & from_end, length - 1 - step, step)


@triton.jit
def _load(pointer, frame, valid, channel, hidden, stride):
    """Returns (BLOCK_T, BLOCK_H) values; frames that are not valid are zeros and cost no traffic."""
    mask = valid[:, None] & (channel < hidden)[None, :]
    return tl.load(pointer + frame[:, None] * stride + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _store(pointer, values, frame, frames, channel, hidden, stride):
    mask = (frame < frames)[:, None] & (channel < hidden)[None, :]
    tl.store(pointer + frame[:, None] * stride + channel[None, :], values, mask=mask)


@triton.jit(do_not_specialize=["frames"])  # one kernel for every length
def _forward_kernel(kv, lengths, h, frames, hidden, DIRECTIONS: tl.constexpr, BLOCK_T: tl.constexpr,
                    BLOCK_H: tl.constexpr, EXACT: tl.constexpr):
    batch, direction = tl.program_id(0) // DIRECTIONS, tl.program_id(0) % DIRECTIONS
    channel = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    length = tl.load(lengths + batch).to(tl.int32)
    row = DIRECTIONS * hidden  # of h; a row of kv is twice as long
    h += batch.to(tl.int64) * frames * row + direction * hidden
    kv += 2 * (batch.to(tl.int64) * frames * row + direction * hidden)

    step = tl.arange(0, BLOCK_T)
    frame = _frame(step, length, direction == 1)
    k = _load(kv, frame, step < length, channel, hidden, 2 * row)
    v = _load(kv + hidden, frame, step < length, channel, hidden, 2 * row)
    state = tl.zeros([BLOCK_H], EXACT)
    for _ in range(0, frames, BLOCK_T):
        next_step = step + BLOCK_T
        next_frame = _frame(next_step, length, direction == 1)
        next_k = _load(kv, next_frame, next_step < length, channel, hidden, 2 * row)
        next_v = _load(kv + hidden, next_frame, next_step < length, channel, hidden, 2 * row)
        z, v = tl.sigmoid(k.to(EXACT)), v.to(EXACT)
        states, state = _scan(1 - z, z * tl.where(v >= 0, v + 0.5, tl.sigmoid(v)), state)
        states = tl.where((step < length)[:, None], states, 0.0)
        _store(h, states, frame, frames, channel, hidden, row)
        step, frame, k, v = next_step, next_frame, next_k, next_v


@triton.jit(do_not_specialize=["frames"])  # one kernel for every length
def _backward_kernel(kv, lengths, h, grad_h, grad_kv, frames, hidden, DIRECTIONS: tl.constexpr,
                     BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, EXACT: tl.constexpr):
    """Runs against the direction: G_t = dL/dh_t + (1 - z_{t+1}) G_{t+1}, then dL/dk and dL/dv from G."""
    batch, direction = tl.program_id(0) // DIRECTIONS, tl.program_id(0) % DIRECTIONS
    channel = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    length = tl.load(lengths + batch).to(tl.int32)
    row = DIRECTIONS * hidden
    offset = batch.to(tl.int64) * frames * row + direction * hidden
    h, grad_h = h + offset, grad_h + offset
    kv, grad_kv = kv + 2 * offset, grad_kv + 2 * offset
    from_end = direction == 0
    past = tl.where(from_end, -1, 1)  # from a frame to the one before it in this direction

    step = tl.arange(0, BLOCK_T)
    grad = tl.zeros([BLOCK_H], EXACT)
    for _ in range(0, frames, BLOCK_T):
        valid = step < length
        frame = _frame(step, length, from_end)
        k = _load(kv, frame, valid, channel, hidden, 2 * row).to(EXACT)
        v = _load(kv + hidden, frame, valid, channel, hidden, 2 * row).to(EXACT)
        k_after = _load(kv, frame - past, valid & (step > 0), channel, hidden, 2 * row).to(EXACT)
        before = _load(h, frame + past, valid & (step < length - 1), channel, hidden, row).to(EXACT)
        grads = _load(grad_h, frame, valid, channel, hidden, row).to(EXACT)
        grads, grad = _scan(1 - tl.sigmoid(k_after), grads, grad)
        z, s = tl.sigmoid(k), tl.sigmoid(v)
        c = tl.where(v >= 0, v + 0.5, s)
        slope = tl.where(v >= 0, 1.0, s * (1 - s))
        grads = tl.where(valid[:, None], grads, 0.0)
        _store(grad_kv, grads * (c - before) * z * (1 - z), frame, frames, channel, hidden, 2 * row)
        _store(grad_kv + hidden, grads * z * slope, frame, frames, channel, hidden, 2 * row)
        step += BLOCK_T
