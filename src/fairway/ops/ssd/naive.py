"""The state space of Mamba-2 by its definition, one token after another.

`h_t = exp(Delta_t A_h) h_(t-1) + Delta_t B_t^T x_t`, `y_t = C_t h_t + D_h x_t`, with one negative number A
per head; B and C are shared by the heads of a group. Dao & Gu 2024 (arXiv:2405.21060).
Shape key: B batch, T time, H heads, P head width, G groups, N state width.
"""

import torch
from torch import Tensor

from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state


@full_precision
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
    """Outputs (B, T, H, P) and the final state (B, H, N, P). `delta_BTH` is positive, `A_H` negative."""
    batch, length, heads, width = x_BTHP.shape
    state = initial_state(state_BHNP, x_BTHP, batch, heads, B_BTGN.shape[3], width)
    repeats = heads // B_BTGN.shape[2]
    B_BTHN, C_BTHN = B_BTGN.repeat_interleave(repeats, 2), C_BTGN.repeat_interleave(repeats, 2)
    outputs = []
    for t in range(length):
        if starts_BT is not None:
            state = state.masked_fill(starts_BT[:, t, None, None, None], 0.0)
        decay_BH11 = (delta_BTH[:, t] * A_H).exp()[:, :, None, None]
        write_BHNP = B_BTHN[:, t, :, :, None] * (delta_BTH[:, t, :, None] * x_BTHP[:, t])[:, :, None, :]
        state = decay_BH11 * state + write_BHNP
        y_BHP = (C_BTHN[:, t, :, None, :] @ state).squeeze(2)
        outputs.append(y_BHP if D_H is None else y_BHP + D_H[:, None] * x_BTHP[:, t])
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(x_BTHP), state
