"""Retention chunk by chunk: inside a chunk the parallel form, between chunks the state.

`o_i = [(Q K^T .* D) V]_i + gamma^i (q_i S)`, i from 1, then `S = gamma^C S + sum_i gamma^(C-i) k_i^T v_i`.
Sun et al. 2023.
Shape key: B batch, T time, H heads, K key width, V value width.
"""

from torch import Tensor

from fairway.ops.decay import scalar_decay
from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state


@full_precision
def retention(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_H: Tensor,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the final state (B, H, K, V)."""
    batch, length, heads, key_width = q_BTHK.shape
    state = initial_state(state_BHKV, v_BTHV, batch, heads, key_width, v_BTHV.shape[3])
    log_decay_1TH = log_decay_H.expand(1, length, heads)
    return scalar_decay(q_BTHK, k_BTHK, v_BTHV, log_decay_1TH, state, starts_BT, chunk)
