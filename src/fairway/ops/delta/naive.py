"""The delta rule and its gated form by their definition, one token after another.

`S' = exp(g_t) S_(t-1)`, `S_t = S' + beta_t k_t^T (v_t - k_t S')`, `o_t = q_t S_t`: the state is read at the
key, and the difference to the value is written back. Without g it is the plain delta rule. Keys of norm at
most 1 and beta in [0, 2] keep it stable; both, and the scale of q, are the caller's. Yang et al. 2024
(arXiv:2406.06484, arXiv:2412.06464).
Shape key: B batch, T time, H heads, K key width, V value width.
"""

import torch
from torch import Tensor

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
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the final state (B, H, K, V)."""
    batch, length, heads, key_width = q_BTHK.shape
    state = initial_state(state_BHKV, v_BTHV, batch, heads, key_width, v_BTHV.shape[3])
    outputs = []
    for t in range(length):
        if starts_BT is not None:
            state = state.masked_fill(starts_BT[:, t, None, None, None], 0.0)
        if log_decay_BTH is not None:
            state = log_decay_BTH[:, t, :, None, None].exp() * state
        k_BH1K, v_BH1V = k_BTHK[:, t, :, None, :], v_BTHV[:, t, :, None, :]
        state = state + beta_BTH[:, t, :, None, None] * k_BH1K.mT @ (v_BH1V - k_BH1K @ state)
        outputs.append((q_BTHK[:, t, :, None, :] @ state).squeeze(2))
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(v_BTHV), state
