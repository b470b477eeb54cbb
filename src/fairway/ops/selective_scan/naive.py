"""The selective state space of Mamba by its definition, one token after another.

`h_t = exp(Delta_t A) .* h_(t-1) + Bbar_t x_t`, `y_t = <C_t, h_t> + D x_t`, with A of shape (D, N) and
independent of the input. `Bbar = Delta B` (Euler, the published code) or `(Delta A)^-1 (exp(Delta A) - I)
Delta B` (zero-order hold, the paper). Gu & Dao 2023 (arXiv:2312.00752). Shape key: B batch, T time, D
channels, N state width.
"""

from typing import Literal

import torch
from torch import Tensor

from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state

Discretisation = Literal["euler", "zoh"]


@full_precision
def selective_scan(
    x_BTD: Tensor,
    delta_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None = None,
    state_BDN: Tensor | None = None,
    starts_BT: Tensor | None = None,
    discretisation: Discretisation = "euler",
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, D) and the final state (B, D, N). `delta_BTD` is positive, `A_DN` negative."""
    batch, length, width = x_BTD.shape
    state = initial_state(state_BDN, x_BTD, batch, width, A_DN.shape[1])
    outputs = []
    for t in range(length):
        if starts_BT is not None:
            state = state.masked_fill(starts_BT[:, t, None, None], 0.0)
        delta_A_BDN = delta_BTD[:, t, :, None] * A_DN
        gain_BDN = delta_BTD[:, t, :, None] if discretisation == "euler" else delta_A_BDN.expm1() / A_DN
        state = delta_A_BDN.exp() * state + gain_BDN * B_BTN[:, t, None, :] * x_BTD[:, t, :, None]
        y_BD = (state * C_BTN[:, t, None, :]).sum(-1)
        outputs.append(y_BD if D_D is None else y_BD + D_D * x_BTD[:, t])
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(x_BTD), state
