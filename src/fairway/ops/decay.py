"""Linear recurrences over outer products with one decay per head and step, chunk by chunk.

`S_t = exp(g_t) S_(t-1) + k_t^T v_t`, `o_t = q_t S_t`. In a chunk with cumulative log decay G: `o_i =
sum_(j<=i) exp(G_i - G_j) (q_i . k_j) v_j + exp(G_i) q_i S`, and `S <- exp(G_C) S + sum_j exp(G_C - G_j) k_j^T
v_j`. Retention, Mamba-2 and linear attention are this recurrence. Chunked form: Dao & Gu 2024
(arXiv:2405.21060).
Shape key: B batch, T time, G key heads, R value heads of each key head, H = G R value heads, K key width, V
value width, N chunks, C places of a chunk.
"""

from torch import Tensor

from fairway.ops.chunking import chunk_size, from_chunks, scalar_decays, to_chunks
from fairway.ops.recurrence import recurrence, states_before


def scalar_decay(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTH: Tensor | None,
    state_BHKV: Tensor,
    starts_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the final state. Value head h reads key head h // R; None means no decay.

    The batch dimension of `log_decay_BTH` may be 1. Time and memory are linear in T.
    """
    length, groups = q_BTGK.shape[1:3]
    repeats = v_BTHV.shape[2] // groups
    size = chunk_size(length, chunk)
    if log_decay_BTH is None:
        log_decay_BTH = v_BTHV.new_zeros(1, length, 1)
    decays = scalar_decays(log_decay_BTH, starts_BT, size)
    pair_NBGRCC = _grouped(decays.pair_NBHCC, groups)
    entering_NBGCR1 = _grouped(decays.entering_NBHC, groups).transpose(3, 4).unsqueeze(-1)
    leaving_NBGCR1 = _grouped(decays.leaving_NBHC, groups).transpose(3, 4).unsqueeze(-1)
    whole_NBG1R1 = _grouped(decays.whole_NBH, groups).unsqueeze(3).unsqueeze(-1)

    q_NBGCK, k_NBGCK = to_chunks(q_BTGK, size), to_chunks(k_BTGK, size)
    v_NBGCRV = to_chunks(v_BTHV.unflatten(2, (groups, repeats)), size)
    scores_NBGRCC = (q_NBGCK @ k_NBGCK.mT).unsqueeze(3) * pair_NBGRCC
    within_NBGCRV = (scores_NBGRCC @ v_NBGCRV.transpose(3, 4)).transpose(3, 4)

    write_NBGKRV = (k_NBGCK.mT @ (v_NBGCRV * leaving_NBGCR1).flatten(-2)).unflatten(-1, v_NBGCRV.shape[-2:])
    initial_BGKRV = state_BHKV.unflatten(1, (groups, repeats)).transpose(2, 3)
    after_NBGKRV, final_BGKRV = recurrence(whole_NBG1R1, write_NBGKRV, initial_BGKRV)
    before_NBGKRV = states_before(after_NBGKRV, initial_BGKRV)
    carried_NBGCRV = (q_NBGCK @ before_NBGKRV.flatten(-2)).unflatten(-1, v_NBGCRV.shape[-2:]) * entering_NBGCR1

    output_BTHV = from_chunks(within_NBGCRV + carried_NBGCRV, length).flatten(2, 3)
    return output_BTHV, final_BGKRV.transpose(2, 3).flatten(1, 2)


def _grouped(decay_NBH: Tensor, groups: int) -> Tensor:
    """Splits the head dimension into key heads and their value heads; a head dimension of 1 serves all."""
    heads = decay_NBH.shape[2]
    return decay_NBH.unflatten(2, (1, 1) if heads == 1 else (groups, heads // groups))
