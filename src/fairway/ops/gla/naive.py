"""Gated linear attention by its definition, one token after another.

`S_t = (alpha_t^T 1) .* S_(t-1) + k_t^T v_t`, `o_t = q_t S_t`, with one decay per key channel, head and step.
Yang et al. 2023 (arXiv:2312.06635). The scale of q is the caller's.
Shape key: B batch, T time, H heads, K key width, V value width.
"""

import torch
from torch import Tensor

from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state


@full_precision
def gla(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTHK: Tensor,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the final state (B, H, K, V). `log_decay_BTHK` is log(alpha) <= 0."""
    batch, length, heads, key_width = q_BTHK.shape
    state = initial_state(state_BHKV, v_BTHV, batch, heads, key_width, v_BTHV.shape[3])
    outputs = []
    for t in range(length):
        if starts_BT is not None:
            state = state.masked_fill(starts_BT[:, t, None, None, None], 0.0)
        alpha_BHK1 = log_decay_BTHK[:, t].exp().unsqueeze(-1)
        state = alpha_BHK1 * state + k_BTHK[:, t, :, :, None] * v_BTHV[:, t, :, None, :]
        outputs.append((q_BTHK[:, t, :, None, :] @ state).squeeze(2))
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(v_BTHV), state
