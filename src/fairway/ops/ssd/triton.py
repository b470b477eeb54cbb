"""The state space of Mamba-2, and every recurrence with one decay per head and step, on GPUs; forward and backward.

With cumulative log decay G of a chunk and state S before it: `y_i = sum_(j<=i) exp(G_i - G_j) (q_i . k_j) v_j +
exp(G_i) q_i S`. Queries are C, keys B, values `Delta_t x_t`, log decays `Delta_t A_h`. Scores are never written to
memory, but computed again for the gradients. By the log decays, `dG_i = q_i . dq_i - k_i . dk_i`, and the last place
gets `sum S .* dS` besides, S the state after the chunk. See `ops/triton.py` for the states between chunks. Dao & Gu
2024 (arXiv:2405.21060).
Shape key: B batch, T time, H value heads, P value width of a head (V), G key heads, N state width (K), C places of a
chunk.
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


def ssd(
    x_BTHP: Tensor,
    delta_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor | None = None,
    state_BHNP: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as `naive.ssd`; the state is float32, the outputs have the type of x."""
    delta_BTH = delta_BTH.float()
    value_BTHP = (x_BTHP * delta_BTH.unsqueeze(-1)).to(x_BTHP.dtype)
    y_BTHP, last = scalar_decay(C_BTGN, B_BTGN, value_BTHP, delta_BTH * A_H, state_BHNP, starts_BT)
    return (y_BTHP if D_H is None else y_BTHP + D_H.unsqueeze(-1).to(x_BTHP.dtype) * x_BTHP), last


def scalar_decay(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTH: Tensor,
    state_BHKV: Tensor | None,
    starts_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) in the type of v, and the final state in float32.

    Value head h reads key head h // (H / G).
    """
    given = prepared(q_BTGK, k_BTGK, v_BTHV, log_decay_BTH, state_BHKV)
    y_BTHV, last, _ = _forward(*given, starts_BT)
    return y_BTHV.to(v_BTHV.dtype), last


@torch.library.custom_op("fairway::scalar_decay_triton", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the final state, and the states between chunks (B, H, N + 1, K, V)."""
    cut = Cut.of(log_decay.unsqueeze(-1), starts)
    states, last = run_states(k, v, state, cut)
    return run_outputs(q, k, v, states, cut), last, states


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, length, heads, values), width = v.shape, k.shape[3]
    states = k.new_empty(batch, heads, -(-length // CHUNK) + 1, width, values)
    return torch.empty_like(v), torch.empty_like(state), states


@torch.library.custom_op("fairway::scalar_decay_triton_backward", mutates_args=())
def _backward(
    by_y: Tensor, by_last: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, states: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by q, k, v, the logarithms of the decays and the carried state."""
    cut, by_y = Cut.of(log_decay.unsqueeze(-1), starts), by_y.contiguous()
    flows, by_state = run_flows(q, by_y, by_last.contiguous(), cut)
    by_v = run_by_values(q, k, by_y, flows, cut)
    by_q, by_k, by_decay = run_by_keys(q, k, v, by_y, states, flows, cut)
    groups, repeats = q.shape[2], v.shape[2] // q.shape[2]
    by_q, by_k = (by.unflatten(2, (groups, repeats)).sum(3).to(q.dtype) for by in (by_q, by_k))
    return by_q, by_k, by_v, by_decay, by_state


@_backward.register_fake
def _(
    by_y: Tensor, by_last: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, states: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    by_q, by_k, by_v, by_decay = (torch.empty_like(x) for x in (q, k, v, log_decay))
    return by_q, by_k, by_v, by_decay, by_last.new_empty(by_last.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_decay, _, starts = inputs
    ctx.save_for_backward(q, k, v, log_decay, output[2], starts)


def _differentiate(ctx: Any, by_y: Tensor, by_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(by_y, by_last, *ctx.saved_tensors), None)


_forward.register_autograd(_differentiate, setup_context=_save)


def run_outputs(q: Tensor, k: Tensor, v: Tensor, states: Tensor, cut: Cut) -> Tensor:
    """Outputs (B, T, H, V) of all chunks at once, given the states between them."""
    (batch, length, groups, width), (heads, values) = k.shape, v.shape[2:]
    y, BV = torch.empty_like(v), block(values, 64)
    outputs_kernel[(batch * heads * cut.chunks, triton.cdiv(values, BV))](
        q, k, v, cut.total, cut.document, states, y, length, cut.padded, cut.chunks,
        heads, groups, width, values, CHUNK, block(width, 64), BV, kind(k), cut.document is not None,
        num_stages=stages(k),
    )  # fmt: skip
    return y


def run_by_values(q: Tensor, k: Tensor, by_y: Tensor, flows: Tensor | None, cut: Cut) -> Tensor:
    """Gradients by the values through the scores, and through the states where their gradients are given."""
    (batch, length, groups, width), (heads, values) = k.shape, by_y.shape[2:]
    by_v, BV = torch.empty_like(by_y), block(values, 64)
    by_values_kernel[(batch * heads * cut.chunks, triton.cdiv(values, BV))](
        q, k, by_y, cut.total, cut.document, flows, by_v, length, cut.padded, cut.chunks,
        heads, groups, width, values, CHUNK, block(width, 64), BV, kind(k), flows is not None, cut.document is not None,
        num_stages=stages(k),
    )  # fmt: skip
    return by_v


def run_by_keys(
    q: Tensor, k: Tensor, v: Tensor, by_y: Tensor, states: Tensor, flows: Tensor, cut: Cut
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by the queries and keys of each value head (B, T, H, K), and by the log decays (B, T, H), float32."""
    (batch, length, groups, width), (heads, values) = k.shape, v.shape[2:]
    BK = block(width, 64)
    columns = triton.cdiv(width, BK)
    by_q, by_k = (k.new_empty(batch, length, heads, width, dtype=torch.float32) for _ in range(2))
    by_decay = by_q.new_empty(columns, batch, length, heads)
    by_keys_kernel[(batch * heads * cut.chunks, columns)](
        q, k, v, by_y, cut.total, cut.document, states, flows, by_q, by_k, by_decay, batch, length, cut.padded,
        cut.chunks, heads, groups, width, values, CHUNK, BK, block(values, 32), kind(k), cut.document is not None,
        num_stages=stages(k),
    )  # fmt: skip
    return by_q, by_k, by_decay.sum(0)


@triton.jit
def pairs(total, document, b, h, n, padded, heads: tl.constexpr, C: tl.constexpr, DOCUMENTS: tl.constexpr):
    """The decay between two places of a chunk (later, earlier); 0 where the later does not see the earlier."""
    place_C = tl.arange(0, C)
    total_C = tl.load(total + (b * padded + n * C + place_C) * heads + h)
    decay_CC = tl.exp(tl.minimum(total_C[:, None] - total_C[None, :], 0.0))
    see_CC = place_C[:, None] >= place_C[None, :]
    if DOCUMENTS:
        own_C, _, _, _ = sight(document, b, n, padded, C)
        see_CC = see_CC & (own_C[:, None] == own_C[None, :])
    return tl.where(see_CC, decay_CC, 0.0)


@triton.jit
def outputs_kernel(
    q, k, v, total, document, states, y, length, padded, chunks,
    heads: tl.constexpr, groups: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """`(Q K^T .* decays) V + exp(G) Q S`."""
    n, at = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    b, h = (at // heads).to(tl.int64), at % heads
    g = h // (heads // groups)
    time_C, column_V = n * C + tl.arange(0, C), tl.program_id(1) * BV + tl.arange(0, BV)
    states += (at.to(tl.int64) * (chunks + 1) + n) * K * V
    score_CC, y_CV = tl.zeros((C, C), tl.float32), tl.zeros((C, BV), tl.float32)
    for start in range(0, K, BK):
        column_K = start + tl.arange(0, BK)
        q_CK = rows(q + (b * length * groups + g) * K, time_C, length, groups * K, column_K, K)
        k_CK = rows(k + (b * length * groups + g) * K, time_C, length, groups * K, column_K, K)
        score_CC += product(q_CK, tl.trans(k_CK), KIND)
        y_CV += product(q_CK, rows(states, column_K, K, V, column_V, V), KIND)
    entering_C1, _, _ = edges(total + h, document, b, n, padded, heads, tl.arange(0, 1), 1, C, DOCUMENTS)
    score_CC *= pairs(total, document, b, h, n, padded, heads, C, DOCUMENTS)
    v_CV = rows(v + (b * length * heads + h) * V, time_C, length, heads * V, column_V, V)
    y_CV = y_CV * entering_C1 + product(score_CC, v_CV, KIND)
    put_rows(y + (b * length * heads + h) * V, y_CV, time_C, length, heads * V, column_V, V)


@triton.jit
def by_values_kernel(
    q, k, by_y, total, document, flows, by_v, length, padded, chunks,
    heads: tl.constexpr, groups: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, KIND: tl.constexpr, FLOWS: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """`dV = (Q K^T .* decays)^T dY + exp(G_C - G) K dS`, the second part where FLOWS."""
    n, at = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    b, h = (at // heads).to(tl.int64), at % heads
    g = h // (heads // groups)
    time_C, column_V = n * C + tl.arange(0, C), tl.program_id(1) * BV + tl.arange(0, BV)
    score_CC, by_v_CV = tl.zeros((C, C), tl.float32), tl.zeros((C, BV), tl.float32)
    for start in range(0, K, BK):
        column_K = start + tl.arange(0, BK)
        q_CK = rows(q + (b * length * groups + g) * K, time_C, length, groups * K, column_K, K)
        k_CK = rows(k + (b * length * groups + g) * K, time_C, length, groups * K, column_K, K)
        score_CC += product(q_CK, tl.trans(k_CK), KIND)
        if FLOWS:
            flow = flows + (at.to(tl.int64) * chunks + n) * K * V
            by_v_CV += product(k_CK, rows(flow, column_K, K, V, column_V, V), KIND)
    _, leaving_C1, _ = edges(total + h, document, b, n, padded, heads, tl.arange(0, 1), 1, C, DOCUMENTS)
    score_CC *= pairs(total, document, b, h, n, padded, heads, C, DOCUMENTS)
    by_y_CV = rows(by_y + (b * length * heads + h) * V, time_C, length, heads * V, column_V, V)
    by_v_CV = by_v_CV * leaving_C1 + product(tl.trans(score_CC), by_y_CV, KIND)
    put_rows(by_v + (b * length * heads + h) * V, by_v_CV, time_C, length, heads * V, column_V, V)


@triton.jit
def by_keys_kernel(
    q, k, v, by_y, total, document, states, flows, by_q, by_k, by_decay, batch, length, padded, chunks,
    heads: tl.constexpr, groups: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, KIND: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """Gradients by a block of the queries and keys, and its part of those by the log decays."""
    n, at = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    b, h = (at // heads).to(tl.int64), at % heads
    g, row = h // (heads // groups), b * length * heads + h
    time_C, column_K = n * C + tl.arange(0, C), tl.program_id(1) * BK + tl.arange(0, BK)
    states += (at.to(tl.int64) * (chunks + 1) + n) * K * V
    flows += (at.to(tl.int64) * chunks + n) * K * V
    by_score_CC = tl.zeros((C, C), tl.float32)
    by_q_CK, by_k_CK = tl.zeros((C, BK), tl.float32), tl.zeros((C, BK), tl.float32)
    by_end_K = tl.zeros((BK,), tl.float32)
    for start in range(0, V, BV):
        column_V = start + tl.arange(0, BV)
        by_y_CV = rows(by_y + row * V, time_C, length, heads * V, column_V, V)
        v_CV = rows(v + row * V, time_C, length, heads * V, column_V, V)
        flow_KV = rows(flows, column_K, K, V, column_V, V)
        by_score_CC += product(by_y_CV, tl.trans(v_CV), KIND)
        by_q_CK += product(by_y_CV, tl.trans(rows(states, column_K, K, V, column_V, V)), KIND)
        by_k_CK += product(v_CV, tl.trans(flow_KV), KIND)
        by_end_K += tl.sum(rows(states + K * V, column_K, K, V, column_V, V) * flow_KV, 1)
    entering_C1, leaving_C1, _ = edges(total + h, document, b, n, padded, heads, tl.arange(0, 1), 1, C, DOCUMENTS)
    by_score_CC *= pairs(total, document, b, h, n, padded, heads, C, DOCUMENTS)
    q_CK = rows(q + (b * length * groups + g) * K, time_C, length, groups * K, column_K, K)
    k_CK = rows(k + (b * length * groups + g) * K, time_C, length, groups * K, column_K, K)
    by_q_CK = by_q_CK * entering_C1 + product(by_score_CC, k_CK, KIND)
    by_k_CK = by_k_CK * leaving_C1 + product(tl.trans(by_score_CC), q_CK, KIND)
    put_rows(by_q + row * K, by_q_CK, time_C, length, heads * K, column_K, K)
    put_rows(by_k + row * K, by_k_CK, time_C, length, heads * K, column_K, K)
    by_total_C = tl.sum(q_CK * by_q_CK - k_CK * by_k_CK, 1)
    later_CC, reached_CK = later(by_end_K, document, b, n, padded, C, DOCUMENTS)
    by_decay_C = tl.sum(later_CC * by_total_C[None, :], 1) + tl.sum(reached_CK, 1)
    by_decay += (tl.program_id(1) * batch + b) * length * heads + h
    tl.store(by_decay + time_C * heads, by_decay_C, mask=time_C < length)
