"""Retention by its definition, one token after another, and its parallel form.

`S_t = gamma_h S_(t-1) + k_t^T v_t`, `o_t = q_t S_t`. Sun et al. 2023 (arXiv:2307.08621). Rotation and the
scale of q are the caller's. Shape key: B batch, T time, H heads, K key width, V value width.
"""

import torch
from torch import Tensor

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
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the final state (B, H, K, V)."""
    batch, length, heads, key_width = q_BTHK.shape
    state = initial_state(state_BHKV, v_BTHV, batch, heads, key_width, v_BTHV.shape[3])
    decay_H11 = log_decay_H.exp()[:, None, None]
    outputs = []
    for t in range(length):
        if starts_BT is not None:
            state = state.masked_fill(starts_BT[:, t, None, None, None], 0.0)
        state = decay_H11 * state + k_BTHK[:, t, :, :, None] * v_BTHV[:, t, :, None, :]
        outputs.append((q_BTHK[:, t, :, None, :] @ state).squeeze(2))
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(v_BTHV), state


@full_precision
def retention_parallel(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_decay_H: Tensor) -> tuple[Tensor, Tensor]:
    """The quadratic form `(Q K^T .* D) V`, `D_nm = gamma^(n-m)` for n >= m, from an empty state.

    Outputs (B, T, H, V) and the final state (B, H, K, V).
    """
    step_T = torch.arange(q_BTHK.shape[1], device=q_BTHK.device)
    distance_TT = step_T[:, None] - step_T[None, :]
    decay_HTT = (distance_TT.clamp(min=0) * log_decay_H[:, None, None]).exp() * (distance_TT >= 0)
    scores_BHTT = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK) * decay_HTT
    leaving_HT = (log_decay_H[:, None] * step_T.flip(0)).exp()
    state_BHKV = torch.einsum("bthk,ht,bthv->bhkv", k_BTHK, leaving_HT, v_BTHV)
    return torch.einsum("bhts,bshv->bthv", scores_BHTT, v_BTHV), state_BHKV
