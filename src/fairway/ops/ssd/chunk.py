"""The state space of Mamba-2 chunk by chunk (state space duality).

It is a linear recurrence with log decay `Delta_t A_h`, queries C, keys B and values `Delta_t x_t`. Dao & Gu
2024.
Shape key: B batch, T time, H heads, P head width, G groups, N state width.
"""

from torch import Tensor

from fairway.ops.decay import scalar_decay
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
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, P) and the final state (B, H, N, P). `delta_BTH` is positive, `A_H` negative."""
    batch, _, heads, width = x_BTHP.shape
    state = initial_state(state_BHNP, x_BTHP, batch, heads, B_BTGN.shape[3], width)
    value_BTHP = x_BTHP * delta_BTH.unsqueeze(-1)
    y_BTHP, final = scalar_decay(C_BTGN, B_BTGN, value_BTHP, delta_BTH * A_H, state, starts_BT, chunk)
    return (y_BTHP if D_H is None else y_BTHP + D_H.unsqueeze(-1) * x_BTHP), final
