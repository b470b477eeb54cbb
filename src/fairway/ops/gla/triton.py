"""Gated linear attention on GPUs, chunk by chunk with secondary chunking; forward and backward.

The scores of a chunk, `A_ij = sum_k q_ik k_jk exp(G_ik - G_jk)`, are built from blocks of 16 places. Blocks below the
diagonal are products: `(q_i .* exp(G_i - G_m)) . (k_j .* exp(G_m - G_j))` with m the first place of the later block, so
that both exponents are <= 0; blocks on the diagonal take each difference by itself. See `ops/triton.py` for the states
between chunks. By the log decays, with S the state after the chunk, `dG_i = q_i .* dq_i - k_i .* dk_i` and the last
place gets `sum_V S .* dS` besides; sums over later places of the same document give dg. Yang et al. 2023
(arXiv:2312.06635).
Shape key: B batch, T time, H heads, K key width, V value width, N chunks, C places of a chunk, S places of a block.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairway.ops.triton import (
    CHUNK,
    Cut,
    block,
    edges,
    kind,
    later,
    prepared,
    product,
    put_rows,
    rows,
    run_flows,
    run_states,
    sight,
    stages,
)  # fmt: skip

SMALL = 16


def gla(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTHK: Tensor,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as `naive.gla`; the state is float32, the outputs have the type of q."""
    given = prepared(q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK, state_BHKV)
    y_BTHV, last, _, _ = _forward(*given, starts_BT)
    return y_BTHV.to(q_BTHK.dtype), last


@torch.library.custom_op("fairway::gla_triton", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs, the final state, the states between chunks (B, H, N + 1, K, V), the scores (B, T, H, C)."""
    cut = Cut.of(log_decay, starts)
    states, last = run_states(k, v, state, cut)
    (batch, length, heads, width), values = q.shape, v.shape[3]
    scores, y = q.new_zeros(batch, length, heads, CHUNK), torch.empty_like(v)
    sizes, fixed = (length, cut.padded, cut.chunks), (heads, width, values, CHUNK)
    BK, BV, documents = block(width, 64), block(values, 64), cut.document is not None
    places = batch * heads * cut.chunks
    scores_kernel[(places, CHUNK // SMALL)](
        q,
        k,
        cut.total,
        cut.document,
        scores,
        *sizes,
        *fixed,
        SMALL,
        block(width, 32),
        kind(q),
        documents,
        num_stages=stages(q),
    )
    outputs_kernel[(places, triton.cdiv(values, BV))](
        q,
        v,
        cut.total,
        cut.document,
        scores,
        states,
        y,
        *sizes,
        *fixed,
        BK,
        BV,
        kind(q),
        documents,
        num_stages=stages(q),
    )
    return y, last, states, scores


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, heads, width = q.shape
    states = k.new_empty(batch, heads, -(-length // CHUNK) + 1, width, v.shape[3])
    return torch.empty_like(v), torch.empty_like(state), states, q.new_empty(batch, length, heads, CHUNK)


@torch.library.custom_op("fairway::gla_triton_backward", mutates_args=())
def _backward(
    by_y: Tensor, by_last: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, states: Tensor, scores: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by q, k, v, the logarithms of the decays and the carried state."""
    cut, by_y = Cut.of(log_decay, starts), by_y.contiguous()
    flows, by_state = run_flows(q, by_y, by_last.contiguous(), cut)
    (batch, length, heads, width), values = q.shape, v.shape[3]
    by_q, by_k, by_v, by_decay = (torch.empty_like(x) for x in (q, k, v, log_decay))
    by_scores = q.new_empty(batch, length, heads, CHUNK, dtype=torch.float32)
    inner_q, inner_k = (torch.empty_like(x, dtype=torch.float32) for x in (q, k))
    sizes, fixed = (length, cut.padded, cut.chunks), (heads, width, values, CHUNK)
    BK, BV, documents = block(width, 64), block(values, 64), cut.document is not None
    places = batch * heads * cut.chunks
    by_values_kernel[(places, triton.cdiv(values, BV))](
        k,
        by_y,
        cut.total,
        cut.document,
        scores,
        flows,
        by_v,
        *sizes,
        *fixed,
        BK,
        BV,
        kind(q),
        documents,
        num_stages=stages(q),
    )
    by_scores_kernel[(places,)](
        by_y, v, cut.document, by_scores, *sizes, *fixed, BV, kind(q), documents, num_stages=stages(q)
    )
    narrow = block(width, 32)
    within_kernel[(places, CHUNK // SMALL, triton.cdiv(width, narrow))](
        q, k, cut.total, by_scores, inner_q, inner_k, *sizes, *fixed, SMALL, narrow, kind(q), num_stages=stages(q)
    )
    across_kernel[(places, triton.cdiv(width, BK))](
        q, k, v, by_y, cut.total, cut.document, states, flows, inner_q, inner_k, by_q, by_k, by_decay,
        *sizes, *fixed, BK, min(BV, 32), kind(q), documents, num_stages=stages(q),
    )  # fmt: skip
    return by_q, by_k, by_v, by_decay, by_state


@_backward.register_fake
def _(
    by_y: Tensor, by_last: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, states: Tensor, scores: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    by_q, by_k, by_v, by_decay = (torch.empty_like(x) for x in (q, k, v, log_decay))
    return by_q, by_k, by_v, by_decay, by_last.new_empty(by_last.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_decay, _, starts = inputs
    ctx.save_for_backward(q, k, v, log_decay, *output[2:], starts)


def _differentiate(ctx: Any, by_y: Tensor, by_last: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(by_y, by_last, *ctx.saved_tensors), None)


_forward.register_autograd(_differentiate, setup_context=_save)


@triton.jit
def scores_kernel(
    q, k, total, document, scores, length, padded, chunks,
    heads: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, S: tl.constexpr, BK: tl.constexpr,
    KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """The rows of one block: products with the blocks before it, each difference by itself inside it."""
    n, at, i = tl.program_id(0) % chunks, tl.program_id(0) // chunks, tl.program_id(1)
    b, h = (at // heads).to(tl.int64), at % heads
    q, k, total = (
        q + (b * length * heads + h) * K,
        k + (b * length * heads + h) * K,
        total + (b * padded * heads + h) * K,
    )
    scores += (b * length * heads + h) * C
    place_S = tl.arange(0, S)
    first = n * C + i * S
    row_S = first + place_S
    own_SS = tl.zeros((S, S), tl.float32)
    for start in range(0, K, BK):
        column_K = start + tl.arange(0, BK)
        q_SK = rows(q, row_S, length, heads * K, column_K, K)
        total_SK = rows(total, row_S, padded, heads * K, column_K, K)
        k_SK = rows(k, row_S, length, heads * K, column_K, K)
        decay_SSK = tl.exp(tl.minimum(total_SK[:, None, :] - total_SK[None, :, :], 0.0))
        own_SS += tl.sum(q_SK[:, None, :] * decay_SSK * k_SK[None, :, :], 2)
    own_SS = tl.where(place_S[:, None] >= place_S[None, :], own_SS, 0.0)
    if DOCUMENTS:
        own_S = tl.load(document + b * (padded + 1) + 1 + row_S)
        own_SS = tl.where(own_S[:, None] == own_S[None, :], own_SS, 0.0)
    put_rows(scores, own_SS, row_S, length, heads * C, i * S + place_S, C)
    for j in range(i):
        before_S = n * C + j * S + place_S
        pair_SS = tl.zeros((S, S), tl.float32)
        for start in range(0, K, BK):
            column_K = start + tl.arange(0, BK)
            cut_1K = rows(total, first + tl.arange(0, 1), padded, heads * K, column_K, K)
            late_SK = tl.exp(rows(total, row_S, padded, heads * K, column_K, K) - cut_1K)
            early_SK = tl.exp(cut_1K - rows(total, before_S, padded, heads * K, column_K, K))
            q_SK = rows(q, row_S, length, heads * K, column_K, K) * late_SK
            k_SK = rows(k, before_S, length, heads * K, column_K, K) * early_SK
            pair_SS += product(q_SK, tl.trans(k_SK), KIND)
        if DOCUMENTS:
            late_S = tl.load(document + b * (padded + 1) + 1 + row_S)
            early_S = tl.load(document + b * (padded + 1) + 1 + before_S)
            pair_SS = tl.where(late_S[:, None] == early_S[None, :], pair_SS, 0.0)
        put_rows(scores, pair_SS, row_S, length, heads * C, j * S + place_S, C)


@triton.jit
def outputs_kernel(
    q, v, total, document, scores, states, y, length, padded, chunks,
    heads: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """`A v + (q .* exp(G)) S`."""
    n, at = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    b, h = (at // heads).to(tl.int64), at % heads
    place_C = tl.arange(0, C)
    time_C, column_V = n * C + place_C, tl.program_id(1) * BV + tl.arange(0, BV)
    states += (at.to(tl.int64) * (chunks + 1) + n) * K * V
    score_CC = rows(scores + (b * length * heads + h) * C, time_C, length, heads * C, place_C, C)
    v_CV = rows(v + (b * length * heads + h) * V, time_C, length, heads * V, column_V, V)
    y_CV = product(score_CC, v_CV, KIND)
    for start in range(0, K, BK):
        column_K = start + tl.arange(0, BK)
        entering_CK, _, _ = edges(total + h * K, document, b, n, padded, heads * K, column_K, K, C, DOCUMENTS)
        q_CK = rows(q + (b * length * heads + h) * K, time_C, length, heads * K, column_K, K)
        y_CV += product(q_CK * entering_CK, rows(states, column_K, K, V, column_V, V), KIND)
    put_rows(y + (b * length * heads + h) * V, y_CV, time_C, length, heads * V, column_V, V)


@triton.jit
def by_values_kernel(
    k, by_y, total, document, scores, flows, by_v, length, padded, chunks,
    heads: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """`dv = A^T dy + (k .* exp(G_C - G)) dS`."""
    n, at = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    b, h = (at // heads).to(tl.int64), at % heads
    place_C = tl.arange(0, C)
    time_C, column_V = n * C + place_C, tl.program_id(1) * BV + tl.arange(0, BV)
    flows += (at.to(tl.int64) * chunks + n) * K * V
    score_CC = rows(scores + (b * length * heads + h) * C, time_C, length, heads * C, place_C, C)
    by_y_CV = rows(by_y + (b * length * heads + h) * V, time_C, length, heads * V, column_V, V)
    by_v_CV = product(tl.trans(score_CC), by_y_CV, KIND)
    for start in range(0, K, BK):
        column_K = start + tl.arange(0, BK)
        _, leaving_CK, _ = edges(total + h * K, document, b, n, padded, heads * K, column_K, K, C, DOCUMENTS)
        k_CK = rows(k + (b * length * heads + h) * K, time_C, length, heads * K, column_K, K)
        by_v_CV += product(k_CK * leaving_CK, rows(flows, column_K, K, V, column_V, V), KIND)
    put_rows(by_v + (b * length * heads + h) * V, by_v_CV, time_C, length, heads * V, column_V, V)


@triton.jit
def by_scores_kernel(
    by_y, v, document, by_scores, length, padded, chunks,
    heads: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BV: tl.constexpr,
    KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """`dA = dy v^T` where a place sees another, else 0."""
    n, at = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    b, h = (at // heads).to(tl.int64), at % heads
    place_C = tl.arange(0, C)
    time_C = n * C + place_C
    by_CC = tl.zeros((C, C), tl.float32)
    for start in range(0, V, BV):
        column_V = start + tl.arange(0, BV)
        by_y_CV = rows(by_y + (b * length * heads + h) * V, time_C, length, heads * V, column_V, V)
        v_CV = rows(v + (b * length * heads + h) * V, time_C, length, heads * V, column_V, V)
        by_CC += product(by_y_CV, tl.trans(v_CV), KIND)
    see_CC = place_C[:, None] >= place_C[None, :]
    if DOCUMENTS:
        own_C, _, _, _ = sight(document, b, n, padded, C)
        see_CC = see_CC & (own_C[:, None] == own_C[None, :])
    by_CC = tl.where(see_CC, by_CC, 0.0)
    put_rows(by_scores + (b * length * heads + h) * C, by_CC, time_C, length, heads * C, place_C, C)


@triton.jit
def within_kernel(
    q, k, total, by_scores, by_q, by_k, length, padded, chunks,
    heads: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, S: tl.constexpr, BK: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """Gradients by the queries and keys of one block through the scores of its chunk."""
    n, at, i = tl.program_id(0) % chunks, tl.program_id(0) // chunks, tl.program_id(1)
    b, h = (at // heads).to(tl.int64), at % heads
    first_row = b * length * heads + h
    q, k, total = q + first_row * K, k + first_row * K, total + (b * padded * heads + h) * K
    by_scores += first_row * C
    step = heads * K
    place_S, column_K = tl.arange(0, S), tl.program_id(2) * BK + tl.arange(0, BK)
    first = n * C + i * S
    row_S = first + place_S
    total_SK = rows(total, row_S, padded, step, column_K, K)
    by_q_SK = tl.zeros((S, BK), tl.float32)
    start_1K = rows(total, first + tl.arange(0, 1), padded, step, column_K, K)
    for j in range(i):
        early_S = n * C + j * S + place_S
        early_SK = tl.exp(start_1K - rows(total, early_S, padded, step, column_K, K))
        by_SS = rows(by_scores, row_S, length, heads * C, j * S + place_S, C)
        by_q_SK += product(by_SS, rows(k, early_S, length, step, column_K, K) * early_SK, KIND)
    by_q_SK = by_q_SK * tl.exp(total_SK - start_1K)
    by_k_SK = tl.zeros((S, BK), tl.float32)
    end_1K = rows(total, first + S - 1 + tl.arange(0, 1), padded, step, column_K, K)
    for j in range(i + 1, C // S):
        late_S = n * C + j * S + place_S
        late_SK = tl.exp(rows(total, late_S, padded, step, column_K, K) - end_1K)
        by_SS = rows(by_scores, late_S, length, heads * C, i * S + place_S, C)
        by_k_SK += product(tl.trans(by_SS), rows(q, late_S, length, step, column_K, K) * late_SK, KIND)
    by_k_SK = by_k_SK * tl.exp(end_1K - total_SK)
    decay_SSK = tl.exp(tl.minimum(total_SK[:, None, :] - total_SK[None, :, :], 0.0))
    flow_SSK = rows(by_scores, row_S, length, heads * C, i * S + place_S, C)[:, :, None] * decay_SSK
    by_q_SK += tl.sum(flow_SSK * rows(k, row_S, length, step, column_K, K)[None, :, :], 1)
    by_k_SK += tl.sum(flow_SSK * rows(q, row_S, length, step, column_K, K)[:, None, :], 0)
    put_rows(by_q + first_row * K, by_q_SK, row_S, length, step, column_K, K)
    put_rows(by_k + first_row * K, by_k_SK, row_S, length, step, column_K, K)


@triton.jit
def across_kernel(
    q, k, v, by_y, total, document, states, flows, inner_q, inner_k, by_q, by_k, by_decay, length, padded, chunks,
    heads: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Adds the gradients by queries and keys through the states, and finds those by the log decays."""
    n, at = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    b, h = (at // heads).to(tl.int64), at % heads
    first_row, step = b * length * heads + h, heads * K
    time_C, column_K = n * C + tl.arange(0, C), tl.program_id(1) * BK + tl.arange(0, BK)
    states += (at.to(tl.int64) * (chunks + 1) + n) * K * V
    flows += (at.to(tl.int64) * chunks + n) * K * V
    by_q_CK, by_k_CK = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
    by_end_K = tl.zeros((BK,), tl.float32)
    for start in range(0, V, BV):
        column_V = start + tl.arange(0, BV)
        by_y_CV = rows(by_y + first_row * V, time_C, length, heads * V, column_V, V)
        v_CV = rows(v + first_row * V, time_C, length, heads * V, column_V, V)
        flow_KV = rows(flows, column_K, K, V, column_V, V)
        by_q_CK += product(by_y_CV, tl.trans(rows(states, column_K, K, V, column_V, V)), KIND)
        by_k_CK += product(v_CV, tl.trans(flow_KV), KIND)
        by_end_K += tl.sum(rows(states + K * V, column_K, K, V, column_V, V) * flow_KV, 1)
    entering_CK, leaving_CK, _ = edges(total + h * K, document, b, n, padded, step, column_K, K, C, DOCUMENTS)
    by_q_CK = by_q_CK * entering_CK + rows(inner_q + first_row * K, time_C, length, step, column_K, K)
    by_k_CK = by_k_CK * leaving_CK + rows(inner_k + first_row * K, time_C, length, step, column_K, K)
    q_CK = rows(q + first_row * K, time_C, length, step, column_K, K)
    k_CK = rows(k + first_row * K, time_C, length, step, column_K, K)
    by_total_CK = q_CK * by_q_CK - k_CK * by_k_CK
    later_CC, reached_CK = later(by_end_K, document, b, n, padded, C, DOCUMENTS)
    by_decay_CK = product(later_CC, by_total_CK, tl.float32) + reached_CK
    put_rows(by_q + first_row * K, by_q_CK, time_C, length, step, column_K, K)
    put_rows(by_k + first_row * K, by_k_CK, time_C, length, step, column_K, K)
    put_rows(by_decay + first_row * K, by_decay_CK, time_C, length, step, column_K, K)
