"""The gated delta rule chunk by chunk, by a triangular solve (the WY or UT transform).

In a chunk with cumulative log decay G and carried state S, the state after place i is `exp(G_i) S +
sum_(j<=i) exp(G_i - G_j) k_j^T u_j`. The written values solve `(I + L) U = beta V - (beta exp(G) K) S` with
`L_ij = beta_i exp(G_i - G_j) (k_i . k_j)` for j < i. Both right-hand sides are solved for all chunks at once;
only the products with S run chunk after chunk. Yang et al. 2024 (arXiv:2406.06484, arXiv:2412.06464).
Shape key: B batch, T time, H heads, K key width, V value width, N chunks, C places of a chunk.
"""

import torch
from torch import Tensor

from fairway.ops.chunking import chunk_size, from_chunks, scalar_decays, to_chunks
from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state


@full_precision
def delta(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    log_decay_BTH: Tensor | None = None,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the final state (B, H, K, V)."""
    batch, length, heads, key_width = q_BTHK.shape
    state = initial_state(state_BHKV, v_BTHV, batch, heads, key_width, v_BTHV.shape[3])
    if length == 0:
        return torch.zeros_like(v_BTHV), state
    size = chunk_size(length, chunk)
    if log_decay_BTH is None:
        log_decay_BTH = v_BTHV.new_zeros(1, length, 1)
    decays = scalar_decays(log_decay_BTH, starts_BT, size)
    entering_NBHC1, leaving_NBHC1 = decays.entering_NBHC.unsqueeze(-1), decays.leaving_NBHC.unsqueeze(-1)
    q_NBHCK, k_NBHCK, v_NBHCV = to_chunks(q_BTHK, size), to_chunks(k_BTHK, size), to_chunks(v_BTHV, size)
    beta_NBHC1 = to_chunks(beta_BTH, size).unsqueeze(-1)

    erased_NBHCK = beta_NBHC1 * k_NBHCK
    overlap_NBHCC = (erased_NBHCK @ k_NBHCK.mT * decays.pair_NBHCC).tril(-1)
    sides_NBHCX = torch.cat((beta_NBHC1 * v_NBHCV, entering_NBHC1 * erased_NBHCK), -1)
    solved_NBHCX = torch.linalg.solve_triangular(overlap_NBHCC, sides_NBHCX, upper=False, unitriangular=True)
    value_NBHCV, reading_NBHCK = solved_NBHCX.split((v_NBHCV.shape[-1], key_width), -1)

    before, written = [], []
    steps = (reading_NBHCK, value_NBHCV, (k_NBHCK * leaving_NBHC1).mT, decays.whole_NBH[..., None, None])
    for reading_BHCK, value_BHCV, k_BHKC, whole_BH11 in zip(*(step.unbind(0) for step in steps), strict=True):
        before.append(state)
        written.append(value_BHCV - reading_BHCK @ state)
        state = whole_BH11 * state + k_BHKC @ written[-1]

    scores_NBHCC = q_NBHCK @ k_NBHCK.mT * decays.pair_NBHCC
    output_NBHCV = scores_NBHCC @ torch.stack(written) + (q_NBHCK * entering_NBHC1) @ torch.stack(before)
    return from_chunks(output_NBHCV, length), state
