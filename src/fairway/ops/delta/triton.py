"""The (gated) delta rule on GPUs, chunk by chunk by the WY or UT transform; forward and backward.

With cumulative log decay G of a chunk, `L_ij = beta_i exp(G_i - G_j) (k_i . k_j)` for j < i and `M = (I + L)^-1`, the
written values are `U = M beta V - W S` with `W = M beta exp(G) K`, S the state before the chunk. Only U and S run from
chunk to chunk. Given U, outputs and gradients are those of a recurrence with one decay per head
(`ops/ssd/triton.py`) with U as its values. With `X = M^T dU` and `Y = -X S^T`: `dV = beta X`, `dL = -X U^T`, and
`beta exp(G) K` gets Y. M is found in blocks of 16 places: the blocks on the diagonal row by row, the rest by
`(I - N)(I + N^2) D^-1` with `N = D^-1 (I + L - D)`, since four blocks make N^4 = 0. Yang et al. 2024
(arXiv:2406.06484, arXiv:2412.06464).
Shape key: B batch, T time, H heads, K key width, V value width, N chunks, C places of a chunk, R blocks of a chunk, S
places of a block.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairway.ops.gpu import operands
from fairway.ops.recurrence import initial_state
from fairway.ops.ssd.triton import pairs, run_by_keys, run_by_values, run_outputs
from fairway.ops.triton import CHUNK, Cut, block, edges, kind, later, product, put_rows, rows

SMALL = 16
WIDEST_KEY = 256


def delta(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    log_decay_BTH: Tensor | None = None,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as `naive.delta`; the state is float32, the outputs have the type of q. Keys up to 256 wide."""
    batch, _, heads, width = q_BTHK.shape
    beta = beta_BTH.float().contiguous()
    log_decay = torch.zeros_like(beta) if log_decay_BTH is None else log_decay_BTH.float().contiguous()
    state = initial_state(state_BHKV, beta, batch, heads, width, v_BTHV.shape[3]).float().contiguous()
    y_BTHV, last, *_ = _forward(*operands(q_BTHK, k_BTHK, v_BTHV), beta, log_decay, state, starts_BT)
    return y_BTHV.to(q_BTHK.dtype), last


@torch.library.custom_op("fairway::delta_triton", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs, the final state, the states between chunks, U (B, T, H, V), M (B, T, H, C) and W (B, T, H, K)."""
    cut = Cut.of(log_decay.unsqueeze(-1), starts)
    inverse, reading, fresh = _solved(k, v, beta, cut)
    (batch, length, heads, width), values = k.shape, v.shape[3]
    states, last = k.new_empty(batch, heads, cut.chunks + 1, width, values), torch.empty_like(state)
    written, BV = torch.empty_like(v), block(values, 32)
    write_kernel[(batch * heads, triton.cdiv(values, BV))](
        k, reading, fresh, cut.total, cut.document, state, states, last, written, length, cut.padded, cut.chunks,
        heads, width, values, CHUNK, block(width, 256), BV, kind(k), cut.document is not None, num_stages=1,
    )  # fmt: skip
    return run_outputs(q, k, written, states, cut), last, states, written, inverse, reading


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, length, heads, width), values = k.shape, v.shape[3]
    states = k.new_empty(batch, heads, -(-length // CHUNK) + 1, width, values)
    inverse = k.new_empty(batch, length, heads, CHUNK)
    return torch.empty_like(v), torch.empty_like(state), states, torch.empty_like(v), inverse, torch.empty_like(k)


def _solved(k: Tensor, v: Tensor, beta: Tensor, cut: Cut) -> tuple[Tensor, Tensor, Tensor]:
    """M (B, T, H, C), `W = M beta exp(G) K` (B, T, H, K) and `M beta V` (B, T, H, V)."""
    (batch, length, heads, width), values = k.shape, v.shape[3]
    inverse, reading, fresh = k.new_empty(batch, length, heads, CHUNK), torch.empty_like(k), torch.empty_like(v)
    solve_kernel[(batch * heads * cut.chunks,)](
        k, v, beta, cut.total, cut.document, inverse, reading, fresh, length, cut.padded, cut.chunks,
        heads, width, values, CHUNK, SMALL, block(width, 32), block(values, 32), kind(k), cut.document is not None,
        num_stages=1,
    )  # fmt: skip
    return inverse, reading, fresh


@torch.library.custom_op("fairway::delta_triton_backward", mutates_args=())
def _backward(
    by_y: Tensor, by_last: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, states: Tensor,
    written: Tensor, inverse: Tensor, reading: Tensor, starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by q, k, v, beta, the logarithms of the decays and the carried state."""
    cut, by_y = Cut.of(log_decay.unsqueeze(-1), starts), by_y.contiguous()
    (batch, length, heads, width), values = k.shape, v.shape[3]
    documents, BV, BK = cut.document is not None, block(values, 32), block(width, 64)
    within = run_by_values(q, k, by_y, None, cut)
    by_written, by_state = torch.empty_like(v), torch.empty_like(by_last)
    flows = k.new_empty(batch, heads, cut.chunks, width, values)
    flow_kernel[(batch * heads, triton.cdiv(values, BV))](
        q, k, reading, by_y, within, cut.total, cut.document, by_last.contiguous(), flows, by_state, by_written,
        length, cut.padded, cut.chunks, heads, width, values, CHUNK, block(width, 256), BV, kind(k), documents,
        num_stages=1,
    )  # fmt: skip
    by_q, by_k, by_decay = run_by_keys(q, k, written, by_y, states, flows, cut)
    columns = triton.cdiv(width, BK)
    by_v, by_k_inside = torch.empty_like(v), torch.empty_like(by_k)
    by_beta, by_decay_inside = (by_k.new_empty(columns + 1, batch, length, heads) for _ in range(2))
    erase_kernel[(batch * heads * cut.chunks, columns)](
        k, v, beta, cut.total, cut.document, inverse, written, by_written, states, by_k_inside, by_v, by_beta,
        by_decay_inside, batch, length, cut.padded, cut.chunks, heads, width, values, CHUNK, BK, BV, kind(k), documents,
        num_stages=1,
    )  # fmt: skip
    by_k, by_decay = by_k + by_k_inside, by_decay + by_decay_inside[:columns].sum(0)
    return by_q.to(q.dtype), by_k.to(k.dtype), by_v, by_beta.sum(0), by_decay, by_state


@_backward.register_fake
def _(
    by_y: Tensor, by_last: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, states: Tensor,
    written: Tensor, inverse: Tensor, reading: Tensor, starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    by_q, by_k, by_v, by_beta, by_decay = (torch.empty_like(x) for x in (q, k, v, beta, log_decay))
    return by_q, by_k, by_v, by_beta, by_decay, by_last.new_empty(by_last.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, beta, log_decay, _, starts = inputs
    ctx.save_for_backward(q, k, v, beta, log_decay, *output[2:], starts)


def _differentiate(ctx: Any, by_y: Tensor, by_last: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(by_y, by_last, *ctx.saved_tensors), None)


_forward.register_autograd(_differentiate, setup_context=_save)


@triton.jit
def inverted(L_CC, C: tl.constexpr, S: tl.constexpr):
    """`(I + L)^-1` of a strictly lower triangular L."""
    R: tl.constexpr = C // S
    place_C, place_S, block_R = tl.arange(0, C), tl.arange(0, S), tl.arange(0, R)
    own_CR = (place_C // S)[:, None] == block_R[None, :]
    inside_CRS = tl.where(own_CR[:, :, None], tl.reshape(L_CC, (C, R, S)), 0.0)
    L_RSS = tl.reshape(tl.sum(inside_CRS, 1), (R, S, S))
    M_RSS = tl.broadcast_to((place_S[:, None] == place_S[None, :]).to(tl.float32)[None, :, :], (R, S, S))
    for i in range(1, S):
        here_1S1 = (place_S == i)[None, :, None]
        L_RS = tl.sum(tl.where(here_1S1, L_RSS, 0.0), 1)
        M_RSS -= tl.where(here_1S1, tl.sum(L_RS[:, :, None] * M_RSS, 1)[:, None, :], 0.0)
    D_CRS = tl.broadcast_to(tl.reshape(M_RSS, (C, S))[:, None, :], (C, R, S))
    D_CC = tl.reshape(tl.where(own_CR[:, :, None], D_CRS, 0.0), (C, C))
    rest_CC = tl.where((place_C // S)[:, None] > (place_C // S)[None, :], L_CC, 0.0)
    N_CC = product(D_CC, rest_CC, tl.float32)
    one_CC = (place_C[:, None] == place_C[None, :]).to(tl.float32)
    series_CC = product(one_CC - N_CC, one_CC + product(N_CC, N_CC, tl.float32), tl.float32)
    return product(series_CC, D_CC, tl.float32)


@triton.jit
def solve_kernel(
    k, v, beta, total, document, inverse, reading, fresh, length, padded, chunks,
    heads: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, S: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """M, and its products with what each place would write and read if nothing were carried."""
    n, at = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    b, h = (at // heads).to(tl.int64), at % heads
    row = b * length * heads + h
    place_C = tl.arange(0, C)
    time_C = n * C + place_C
    overlap_CC = tl.zeros((C, C), tl.float32)
    for start in range(0, K, BK):
        k_CK = rows(k + row * K, time_C, length, heads * K, start + tl.arange(0, BK), K)
        overlap_CC += product(k_CK, tl.trans(k_CK), KIND)
    beta_C1 = rows(beta + row, time_C, length, heads, tl.arange(0, 1), 1)
    overlap_CC *= beta_C1 * pairs(total, document, b, h, n, padded, heads, C, DOCUMENTS)
    M_CC = inverted(tl.where(place_C[:, None] > place_C[None, :], overlap_CC, 0.0), C, S)
    put_rows(inverse + row * C, M_CC, time_C, length, heads * C, place_C, C)
    for start in range(0, V, BV):
        column_V = start + tl.arange(0, BV)
        v_CV = beta_C1 * rows(v + row * V, time_C, length, heads * V, column_V, V)
        put_rows(fresh + row * V, product(M_CC, v_CV, KIND), time_C, length, heads * V, column_V, V)
    entering_C1, _, _ = edges(total + h, document, b, n, padded, heads, tl.arange(0, 1), 1, C, DOCUMENTS)
    for start in range(0, K, BK):
        column_K = start + tl.arange(0, BK)
        k_CK = beta_C1 * entering_C1 * rows(k + row * K, time_C, length, heads * K, column_K, K)
        put_rows(reading + row * K, product(M_CC, k_CK, KIND), time_C, length, heads * K, column_K, K)


@triton.jit
def write_kernel(
    k, reading, fresh, total, document, state, states, last, written, length, padded, chunks,
    heads: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """From chunk to chunk: what is written, `U = M beta V - W S`, and the state."""
    at = tl.program_id(0)
    b, h = (at // heads).to(tl.int64), at % heads
    row = b * length * heads + h
    column_K, column_V = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    states += at.to(tl.int64) * (chunks + 1) * K * V
    S_KV = rows(state + at.to(tl.int64) * K * V, column_K, K, V, column_V, V)
    for n in range(chunks):
        put_rows(states + n * K * V, S_KV, column_K, K, V, column_V, V)
        time_C = n * C + tl.arange(0, C)
        reading_CK = rows(reading + row * K, time_C, length, heads * K, column_K, K)
        u_CV = rows(fresh + row * V, time_C, length, heads * V, column_V, V) - product(reading_CK, S_KV, KIND)
        put_rows(written + row * V, u_CV, time_C, length, heads * V, column_V, V)
        _, leaving_C1, whole_1 = edges(total + h, document, b, n, padded, heads, tl.arange(0, 1), 1, C, DOCUMENTS)
        k_CK = leaving_C1 * rows(k + row * K, time_C, length, heads * K, column_K, K)
        S_KV = S_KV * whole_1[None, :] + product(tl.trans(k_CK), u_CV, KIND)
    put_rows(states + chunks * K * V, S_KV, column_K, K, V, column_V, V)
    put_rows(last + at.to(tl.int64) * K * V, S_KV, column_K, K, V, column_V, V)


@triton.jit
def flow_kernel(
    q, k, reading, by_y, within, total, document, by_last, flows, by_state, by_written, length, padded, chunks,
    heads: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Gradients by the states and by what is written, from the last chunk on."""
    at = tl.program_id(0)
    b, h = (at // heads).to(tl.int64), at % heads
    row = b * length * heads + h
    column_K, column_V = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    flows += at.to(tl.int64) * chunks * K * V
    flow_KV = rows(by_last + at.to(tl.int64) * K * V, column_K, K, V, column_V, V)
    for i in range(chunks):
        n = chunks - 1 - i
        put_rows(flows + n * K * V, flow_KV, column_K, K, V, column_V, V)
        time_C = n * C + tl.arange(0, C)
        entering_C1, leaving_C1, whole_1 = edges(
            total + h, document, b, n, padded, heads, tl.arange(0, 1), 1, C, DOCUMENTS
        )
        k_CK = leaving_C1 * rows(k + row * K, time_C, length, heads * K, column_K, K)
        by_u_CV = rows(within + row * V, time_C, length, heads * V, column_V, V) + product(k_CK, flow_KV, KIND)
        put_rows(by_written + row * V, by_u_CV, time_C, length, heads * V, column_V, V)
        q_CK = entering_C1 * rows(q + row * K, time_C, length, heads * K, column_K, K)
        by_y_CV = rows(by_y + row * V, time_C, length, heads * V, column_V, V)
        reading_CK = rows(reading + row * K, time_C, length, heads * K, column_K, K)
        flow_KV = flow_KV * whole_1[None, :] + product(tl.trans(q_CK), by_y_CV, KIND)
        flow_KV -= product(tl.trans(reading_CK), by_u_CV, KIND)
    put_rows(by_state + at.to(tl.int64) * K * V, flow_KV, column_K, K, V, column_V, V)


@triton.jit
def erase_kernel(
    k, v, beta, total, document, inverse, written, by_written, states, by_k, by_v, by_beta, by_decay,
    batch, length, padded, chunks,
    heads: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Gradients through M and W by a block of the keys, by the values, and parts of those by beta and the decays.

    Every block of keys finds the gradients by the values; all store the same.
    """
    n, at = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    b, h = (at // heads).to(tl.int64), at % heads
    row, columns = b * length * heads + h, tl.num_programs(1)
    place_C = tl.arange(0, C)
    time_C, column_K = n * C + place_C, tl.program_id(1) * BK + tl.arange(0, BK)
    states += (at.to(tl.int64) * (chunks + 1) + n) * K * V
    M_CC = rows(inverse + row * C, time_C, length, heads * C, place_C, C)
    beta_C1 = rows(beta + row, time_C, length, heads, tl.arange(0, 1), 1)
    by_L_CC, Y_CK, by_beta_C = tl.zeros((C, C), tl.float32), tl.zeros((C, BK), tl.float32), tl.zeros((C,), tl.float32)
    for start in range(0, V, BV):
        column_V = start + tl.arange(0, BV)
        by_u_CV = rows(by_written + row * V, time_C, length, heads * V, column_V, V)
        X_CV = product(tl.trans(M_CC), by_u_CV, KIND)
        put_rows(by_v + row * V, beta_C1 * X_CV, time_C, length, heads * V, column_V, V)
        by_beta_C += tl.sum(X_CV * rows(v + row * V, time_C, length, heads * V, column_V, V), 1)
        by_L_CC -= product(X_CV, tl.trans(rows(written + row * V, time_C, length, heads * V, column_V, V)), KIND)
        Y_CK -= product(X_CV, tl.trans(rows(states, column_K, K, V, column_V, V)), KIND)
    by_L_CC = tl.where(place_C[:, None] > place_C[None, :], by_L_CC, 0.0)
    by_L_CC *= pairs(total, document, b, h, n, padded, heads, C, DOCUMENTS)
    entering_C1, _, _ = edges(total + h, document, b, n, padded, heads, tl.arange(0, 1), 1, C, DOCUMENTS)
    k_CK = rows(k + row * K, time_C, length, heads * K, column_K, K)
    Y_CK *= entering_C1
    overlap_CC = product(k_CK, tl.trans(k_CK), KIND)
    erased_CC = by_L_CC * beta_C1
    later_CK = product(erased_CC, k_CK, KIND) + beta_C1 * Y_CK
    earlier_CK = product(tl.trans(erased_CC), k_CK, KIND)
    put_rows(by_k + row * K, later_CK + earlier_CK, time_C, length, heads * K, column_K, K)
    by_total_C = tl.sum(k_CK * (later_CK - earlier_CK), 1)
    later_CC, _ = later(tl.zeros((1,), tl.float32), document, b, n, padded, C, DOCUMENTS)
    by_decay_C = tl.sum(later_CC * by_total_C[None, :], 1)
    part = (tl.program_id(1) * batch + b) * length * heads + h
    tl.store(by_decay + part + time_C * heads, by_decay_C, mask=time_C < length)
    by_pairs_C = tl.sum(by_L_CC * overlap_CC, 1) + tl.sum(Y_CK * k_CK, 1)
    tl.store(by_beta + part + time_C * heads, by_pairs_C, mask=time_C < length)
    whole = (columns * batch + b) * length * heads + h
    tl.store(by_beta + whole + time_C * heads, by_beta_C, mask=time_C < length)
