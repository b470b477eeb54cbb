"""Gated linear attention chunk by chunk, with secondary chunking.

With cumulative log decay G of a chunk, `A_ij = sum_k q_ik k_jk exp(G_ik - G_jk)` for j <= i, `o_i = sum_j
A_ij v_j + (q_i .* exp(G_i)) S`, `S <- exp(G_C)^T .* S + sum_j (k_j .* exp(G_C - G_j))^T v_j`. The exponential
of a difference does not factorise safely over a whole chunk: exp(-G_j) overflows. So A is built from small
blocks upwards: for a block cut at m, its lower left quarter is `(q_i .* exp(G_i - G_m)) . (k_j .* exp(G_m -
G_j))` with j <= m < i, where both exponents are <= 0. Yang et al. 2023 (arXiv:2312.06635). Shape key: B
batch, T time, H heads, K key width, V value width, N chunks, C places of a chunk, M blocks of a chunk, S
places of a block.
"""

import torch
from torch import Tensor

from fairway.ops.chunking import chunk_size, from_chunks, masked, to_chunks, visibility
from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state, recurrence, states_before

SMALLEST_BLOCK = 4


@full_precision
def gla(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTHK: Tensor,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the final state (B, H, K, V).

    `log_decay_BTHK` is log(alpha) <= 0; `chunk` is a power of 2.
    """
    assert chunk.bit_count() == 1, "blocks double up to the chunk, so it is a power of 2"
    batch, length, heads, key_width = q_BTHK.shape
    state = initial_state(state_BHKV, v_BTHV, batch, heads, key_width, v_BTHV.shape[3])
    size = chunk_size(length, chunk)
    see = visibility(starts_BT, size, q_BTHK.device)
    q_NBHCK, k_NBHCK, v_NBHCV = to_chunks(q_BTHK, size), to_chunks(k_BTHK, size), to_chunks(v_BTHV, size)
    total_NBHCK = to_chunks(log_decay_BTHK, size).cumsum(-2)
    last_NBH1K = total_NBHCK[..., -1:, :]

    scores_NBHCC = _scores(q_NBHCK, k_NBHCK, total_NBHCK)
    if starts_BT is not None:
        scores_NBHCC = scores_NBHCC * see.pair_NBHCC

    entering_NBHC1 = None if see.entering_NBHC is None else see.entering_NBHC.unsqueeze(-1)
    leaving_NBHC1 = None if see.leaving_NBHC is None else see.leaving_NBHC.unsqueeze(-1)
    entering_NBHCK = masked(total_NBHCK.exp(), entering_NBHC1)
    leaving_NBHCK = masked((last_NBH1K - total_NBHCK).exp(), leaving_NBHC1)
    write_NBHKV = (k_NBHCK * leaving_NBHCK).mT @ v_NBHCV
    after_NBHKV, final = recurrence(entering_NBHCK[..., -1, :].unsqueeze(-1), write_NBHKV, state)
    carried_NBHCV = (q_NBHCK * entering_NBHCK) @ states_before(after_NBHKV, state)
    return from_chunks(scores_NBHCC @ v_NBHCV + carried_NBHCV, length), final


def _scores(q_NBHCK: Tensor, k_NBHCK: Tensor, total_NBHCK: Tensor) -> Tensor:
    """Decayed scores (N, B, H, C, C), zero above the diagonal."""
    chunk = q_NBHCK.shape[3]
    size = min(SMALLEST_BLOCK, chunk)
    blocks_MSS = _smallest(*(x.unflatten(3, (chunk // size, size)) for x in (q_NBHCK, k_NBHCK, total_NBHCK)))
    while size < chunk:
        halves = (chunk // (2 * size), 2, size)
        q_MSK = q_NBHCK.unflatten(3, halves)[..., 1, :, :]
        k_MSK = k_NBHCK.unflatten(3, halves)[..., 0, :, :]
        early_MSK, late_MSK = total_NBHCK.unflatten(3, halves).unbind(-3)
        cut_M1K = early_MSK[..., -1:, :]
        quarter_MSS = (q_MSK * (late_MSK - cut_M1K).exp()) @ (k_MSK * (cut_M1K - early_MSK).exp()).mT
        first_MSS, second_MSS = blocks_MSS.unflatten(3, (chunk // (2 * size), 2)).unbind(4)
        upper_MSS = torch.cat((first_MSS, torch.zeros_like(quarter_MSS)), -1)
        blocks_MSS = torch.cat((upper_MSS, torch.cat((quarter_MSS, second_MSS), -1)), -2)
        size *= 2
    return blocks_MSS.squeeze(3)


def _smallest(q_MSK: Tensor, k_MSK: Tensor, total_MSK: Tensor) -> Tensor:
    """Decayed scores (..., M, S, S) of the smallest blocks, each difference by itself."""
    size = q_MSK.shape[-2]
    above_SS = torch.ones(size, size, dtype=torch.bool, device=q_MSK.device).triu(1)
    difference_MSSK = total_MSK.unsqueeze(-2) - total_MSK.unsqueeze(-3)
    decay_MSSK = difference_MSSK.masked_fill(above_SS.unsqueeze(-1), float("-inf")).exp()
    return (q_MSK.unsqueeze(-2) * decay_MSSK * k_MSK.unsqueeze(-3)).sum(-1)
