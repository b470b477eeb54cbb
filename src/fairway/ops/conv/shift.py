"""Token shift: every token beside the one before it.

Shape key: B batch, T time, D channels.
"""

import torch
from torch import Tensor

from fairway.ops.recurrence import initial_state


def previous_token(
    x_BTD: Tensor, state_B1D: Tensor | None = None, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`x_(t-1)` for each t, zeros where a document begins; and the last input (B, 1, D), float32 at least."""
    dtype = torch.promote_types(x_BTD.dtype, torch.float32)
    state = initial_state(state_B1D, x_BTD.to(dtype), x_BTD.shape[0], 1, x_BTD.shape[2])
    joint = torch.cat((state.to(dtype), x_BTD.to(dtype)), 1)
    shifted_BTD = joint[:, :-1].to(x_BTD.dtype)
    if starts_BT is not None:
        shifted_BTD = shifted_BTD.masked_fill(starts_BT.unsqueeze(-1), 0.0)
    return shifted_BTD, joint[:, -1:].clone()  # a view would keep the whole sequence alive
