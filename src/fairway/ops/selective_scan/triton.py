"""The selective state space of Mamba on GPUs, forward and backward.

Each program runs a block of channels through time, 16 tokens at once: the steps `(a, b)` of `h_t = a_t h_(t-1) + b_t`
combine by `(a1, b1) o (a2, b2) = (a1 a2, a2 b1 + b2)`, an associative scan over the chunk in registers. Only the state
before each chunk is kept; the backward pass scans each chunk again, and from its end for `g_t = dy_t C_t + a_(t+1)
g_(t+1)`. Gradients shared by blocks of channels or sequences are summed in a fixed order, so that runs repeat bit for
bit. Gu & Dao 2023 (arXiv:2312.00752).
Shape key: B batch, T time, D channels, N state width, S chunks, C places of a chunk, P channels of a block.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairway.ops.recurrence import initial_state
from fairway.ops.selective_scan.naive import Discretisation
from fairway.ops.triton import put_rows, rows

CHUNK = 16
PLACES = tl.constexpr(CHUNK)


def selective_scan(
    x_BTD: Tensor,
    delta_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None = None,
    state_BDN: Tensor | None = None,
    starts_BT: Tensor | None = None,
    discretisation: Discretisation = "euler",
) -> tuple[Tensor, Tensor]:
    """The same as `naive.selective_scan`; the state is float32, the outputs have the type of x."""
    A_DN, delta_BTD = A_DN.float().contiguous(), delta_BTD.float().contiguous()
    state = initial_state(state_BDN, A_DN, x_BTD.shape[0], *A_DN.shape).float().contiguous()
    x, B, C = (tensor.contiguous() for tensor in (x_BTD, B_BTN, C_BTN))
    skip, starts = (None if tensor is None else tensor.contiguous() for tensor in (D_D, starts_BT))
    y_BTD, last, _ = _forward(x, delta_BTD, A_DN, B, C, skip, state, starts, discretisation == "zoh")
    return y_BTD, last


@torch.library.custom_op("fairway::selective_scan_triton", mutates_args=())
def _forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    skip: Tensor | None, state: Tensor, starts: Tensor | None, hold: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Outputs, the final state, and the state before each chunk (B, S, D, N)."""
    (batch, length, width), count = x.shape, A.shape[1]
    y, last, firsts = torch.empty_like(x), torch.empty_like(state), _firsts(x, A)
    channels, states = _tile(count)
    scan_kernel[(batch, triton.cdiv(width, channels))](
        x, delta, A, B, C, skip, state, starts, y, last, firsts, length, firsts.shape[1],
        width, count, CHUNK, channels, states, hold,
    )  # fmt: skip
    return y, last, firsts


@_forward.register_fake
def _(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    skip: Tensor | None, state: Tensor, starts: Tensor | None, hold: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), torch.empty_like(state), _firsts(x, A)


@torch.library.custom_op("fairway::selective_scan_triton_backward", mutates_args=())
def _backward(
    by_y: Tensor, by_last: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    skip: Tensor | None, firsts: Tensor, starts: Tensor | None, hold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by x, Delta, A, B, C, the skip and the carried state."""
    (batch, length, width), count = x.shape, A.shape[1]
    channels, states = _tile(count)
    blocks = triton.cdiv(width, channels)
    by_x, by_delta, by_state = torch.empty_like(x), torch.empty_like(delta), torch.empty_like(by_last)
    by_A, by_skip = A.new_empty(batch, *A.shape), A.new_empty(batch, width)
    by_B, by_C = (A.new_empty(blocks, *B.shape) for _ in range(2))
    unscan_kernel[(batch, blocks)](
        by_y.contiguous(), by_last.contiguous(), x, delta, A, B, C, skip, firsts, starts,
        by_x, by_delta, by_A, by_B, by_C, by_skip, by_state, batch, length, firsts.shape[1],
        width, count, CHUNK, channels, states, hold, num_warps=8,
    )  # fmt: skip
    shared = by_A.sum(0), by_B.sum(0).to(B.dtype), by_C.sum(0).to(C.dtype)
    return by_x, by_delta, *shared, by_skip.sum(0).to(x.dtype if skip is None else skip.dtype), by_state


@_backward.register_fake
def _(
    by_y: Tensor, by_last: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    skip: Tensor | None, firsts: Tensor, starts: Tensor | None, hold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    by_skip, by_state = (x if skip is None else skip).new_empty(x.shape[2]), by_last.new_empty(by_last.shape)
    by_x, by_delta, by_A, by_B, by_C = (torch.empty_like(tensor) for tensor in (x, delta, A, B, C))
    return by_x, by_delta, by_A, by_B, by_C, by_skip, by_state


def _tile(count: int) -> tuple[int, int]:
    """Channels and states of a program: 256 together, so that a chunk of them fits its registers."""
    states = triton.next_power_of_2(count)
    return max(1, min(16, 256 // states)), states


def _firsts(x: Tensor, A: Tensor) -> Tensor:
    return A.new_empty(x.shape[0], -(-x.shape[1] // CHUNK), *A.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, delta, A, B, C, skip, _, starts, ctx.hold = inputs
    ctx.save_for_backward(x, delta, A, B, C, skip, output[2], starts)


def _differentiate(ctx: Any, by_y: Tensor, by_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *given, skip, firsts, starts = ctx.saved_tensors
    *gradients, by_skip, by_state = _backward(by_y, by_last, *given, skip, firsts, starts, ctx.hold)
    return *gradients, None if skip is None else by_skip, by_state, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


@triton.jit
def combined(a1, b1, a2, b2):
    """One step after another, as one step."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def expm1(z):
    """`exp(z) - 1` for z <= 0, without loss where z is small."""
    series = z * (1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5 * (1 + z / 6 * (1 + z / 7))))))
    return tl.where(z > -0.25, series, tl.exp(z) - 1)


@triton.jit
def steps(delta_CP, A_PN, starts, time_C, length, HOLD: tl.constexpr):
    """The decays of a chunk, the same with documents cut apart, and the factor of each write (C, P, N).

    Places after the last token keep the state and write nothing.
    """
    exponent_CPN = delta_CP[:, :, None] * A_PN[None, :, :]
    decay_CPN = tl.exp(exponent_CPN)
    kept_CPN = decay_CPN
    if starts is not None:
        begins_C = tl.load(starts + time_C, mask=time_C < length, other=0)
        kept_CPN = tl.where((begins_C != 0)[:, None, None], 0.0, decay_CPN)
    gain_CPN = delta_CP[:, :, None] + 0.0 * exponent_CPN
    if HOLD:
        gain_CPN = expm1(exponent_CPN) / A_PN[None, :, :]
    return decay_CPN, kept_CPN, gain_CPN


@triton.jit
def scanned(x_CP, delta_CP, A_PN, B_C1N, first_PN, starts, time_C, length, HOLD: tl.constexpr):
    """The states of a chunk, what each place writes, the factors of the writes, and the decays (C, P, N)."""
    decay_CPN, kept_CPN, gain_CPN = steps(delta_CP, A_PN, starts, time_C, length, HOLD)
    write_CPN = gain_CPN * x_CP[:, :, None] * B_C1N
    total_CPN, own_CPN = tl.associative_scan((kept_CPN, write_CPN), 0, combined)
    return own_CPN + total_CPN * first_PN[None, :, :], write_CPN, gain_CPN, decay_CPN


@triton.jit
def flowing(by_y_CP, next_CP, A_PN, C_C1N, flow_PN, starts, time_C, length):
    """Gradients by the states of a chunk (C, P, N), and by the first of them (P, N), from that after the chunk."""
    _, next_CPN, _ = steps(next_CP, A_PN, starts, time_C + 1, length, False)
    total_CPN, own_CPN = tl.associative_scan((next_CPN, by_y_CP[:, :, None] * C_C1N), 0, combined, reverse=True)
    flow_CPN = own_CPN + total_CPN * flow_PN[None, :, :]
    begin_C11 = (tl.arange(0, PLACES) == 0)[:, None, None]
    return flow_CPN, tl.sum(tl.where(begin_C11, flow_CPN, 0.0), 0)


@triton.jit
def by_steps(by_exponent_CPN, by_gain_CPN, decay_CPN, gain_CPN, delta_CP, A_PN, HOLD: tl.constexpr):
    """Gradients by Delta (C, P) and A (P, N), from those by the exponents and by the factors of the writes."""
    by_A_PN = tl.zeros_like(A_PN)
    if HOLD:
        by_gain_CPN = by_gain_CPN / A_PN[None, :, :]
        by_exponent_CPN += by_gain_CPN * decay_CPN
        by_A_PN -= tl.sum(by_gain_CPN * gain_CPN, 0)
        by_delta_CP = tl.sum(by_exponent_CPN * A_PN[None, :, :], 2)
    else:
        by_delta_CP = tl.sum(by_exponent_CPN * A_PN[None, :, :] + by_gain_CPN, 2)
    return by_delta_CP, by_A_PN + tl.sum(by_exponent_CPN * delta_CP[:, :, None], 0)


@triton.jit
def scan_kernel(
    x, delta, A, B, C, skip, state, starts, y, last, firsts, length, chunks,
    D: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr, BN: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """One block of channels of one sequence, chunk after chunk."""
    b = tl.program_id(0).to(tl.int64)
    column_P, column_N = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, BN)
    inside_PN = (column_P < D)[:, None] & (column_N < N)[None, :]
    A_PN = tl.load(A + column_P[:, None] * N + column_N[None, :], mask=inside_PN, other=-1.0)
    h_PN = rows(state + b * D * N, column_P, D, N, column_N, N)
    x, delta, y, B, C = (
        x + b * length * D,
        delta + b * length * D,
        y + b * length * D,
        B + b * length * N,
        C + b * length * N,
    )
    if starts is not None:
        starts += b * length
    for s in range(chunks):
        put_rows(firsts + (b * chunks + s) * D * N, h_PN, column_P, D, N, column_N, N)
        time_C = s * SIZE + tl.arange(0, SIZE)
        x_CP = rows(x, time_C, length, D, column_P, D)
        delta_CP = rows(delta, time_C, length, D, column_P, D)
        B_C1N = rows(B, time_C, length, N, column_N, N)[:, None, :]
        h_CPN, _, _, _ = scanned(x_CP, delta_CP, A_PN, B_C1N, h_PN, starts, time_C, length, HOLD)
        y_CP = tl.sum(h_CPN * rows(C, time_C, length, N, column_N, N)[:, None, :], 2)
        if skip is not None:
            y_CP += x_CP * tl.load(skip + column_P, mask=column_P < D, other=0.0).to(tl.float32)[None, :]
        put_rows(y, y_CP, time_C, length, D, column_P, D)
        end_C11 = (tl.arange(0, SIZE) == SIZE - 1)[:, None, None]
        h_PN = tl.sum(tl.where(end_C11, h_CPN, 0.0), 0)
    put_rows(last + b * D * N, h_PN, column_P, D, N, column_N, N)


@triton.jit
def unscan_kernel(
    by_y, by_last, x, delta, A, B, C, skip, firsts, starts, by_x, by_delta, by_A, by_B, by_C, by_skip, by_state,
    batch, length, chunks,
    D: tl.constexpr, N: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr, BN: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """All gradients of one block of channels of one sequence, from the last chunk on."""
    b = tl.program_id(0).to(tl.int64)
    column_P, column_N = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, BN)
    inside_PN = (column_P < D)[:, None] & (column_N < N)[None, :]
    A_PN = tl.load(A + column_P[:, None] * N + column_N[None, :], mask=inside_PN, other=-1.0)
    flow_PN = rows(by_last + b * D * N, column_P, D, N, column_N, N)
    part = (tl.program_id(1).to(tl.int64) * batch + b) * length * N
    by_A_PN, by_skip_P = tl.zeros((CHANNELS, BN), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    if starts is not None:
        starts += b * length
    for i in range(chunks):
        s = chunks - 1 - i
        time_C = s * SIZE + tl.arange(0, SIZE)
        x_CP = rows(x + b * length * D, time_C, length, D, column_P, D)
        delta_CP = rows(delta + b * length * D, time_C, length, D, column_P, D)
        by_y_CP = rows(by_y + b * length * D, time_C, length, D, column_P, D)
        B_C1N = rows(B + b * length * N, time_C, length, N, column_N, N)[:, None, :]
        C_C1N = rows(C + b * length * N, time_C, length, N, column_N, N)[:, None, :]
        first_PN = rows(firsts + (b * chunks + s) * D * N, column_P, D, N, column_N, N)
        h_CPN, write_CPN, gain_CPN, decay_CPN = scanned(
            x_CP, delta_CP, A_PN, B_C1N, first_PN, starts, time_C, length, HOLD
        )
        next_CP = rows(delta + b * length * D, time_C + 1, length, D, column_P, D)
        flow_CPN, flow_PN = flowing(by_y_CP, next_CP, A_PN, C_C1N, flow_PN, starts, time_C, length)
        put_rows(by_C + part, tl.sum(h_CPN * by_y_CP[:, :, None], 1), time_C, length, N, column_N, N)
        by_write_CPN = flow_CPN * gain_CPN
        put_rows(by_B + part, tl.sum(by_write_CPN * x_CP[:, :, None], 1), time_C, length, N, column_N, N)
        by_x_CP = tl.sum(by_write_CPN * B_C1N, 2)
        by_exponent_CPN, by_gain_CPN = flow_CPN * (h_CPN - write_CPN), flow_CPN * x_CP[:, :, None] * B_C1N
        by_delta_CP, more_PN = by_steps(by_exponent_CPN, by_gain_CPN, decay_CPN, gain_CPN, delta_CP, A_PN, HOLD)
        by_A_PN += more_PN
        if skip is not None:
            by_x_CP += by_y_CP * tl.load(skip + column_P, mask=column_P < D, other=0.0).to(tl.float32)[None, :]
            by_skip_P += tl.sum(by_y_CP * x_CP, 0)
        put_rows(by_x + b * length * D, by_x_CP, time_C, length, D, column_P, D)
        put_rows(by_delta + b * length * D, by_delta_CP, time_C, length, D, column_P, D)
    flow_PN *= first_kept(delta, A_PN, starts, b, length, column_P, D)
    put_rows(by_state + b * D * N, flow_PN, column_P, D, N, column_N, N)
    put_rows(by_A + b * D * N, by_A_PN, column_P, D, N, column_N, N)
    tl.store(by_skip + b * D + column_P, by_skip_P, mask=column_P < D)


@triton.jit
def first_kept(delta, A_PN, starts, b, length, column_P, D: tl.constexpr):
    """The decay of the first token (P, N)."""
    time_1 = tl.arange(0, 1)
    delta_1P = rows(delta + b * length * D, time_1, length, D, column_P, D)
    _, kept_1PN, _ = steps(delta_1P, A_PN, starts, time_1, length, False)
    return tl.sum(kept_1PN, 0)
