"""The state space of Mamba-2 by the fastest path for the tensors at hand.

The native kernel takes float32 and bfloat16 on the CPU, with log-decays `Delta_t A_h`, queries C, keys B and values
`Delta_t x_t`; the Triton kernels take what is on a GPU, the chunked form everything else. See `naive.py` for the
definition. Of bfloat16 inputs the outputs, the state and each gradient are within 1 % (relative error of norms) of the
definition's: values and the operands of products are rounded, while decays, sums and states are float32.
Shape key: B batch, T time, H heads, P head width, G groups, N state width.
"""

import torch
from torch import Tensor

from fairway.core.native import usable
from fairway.ops.gpu import on_gpu
from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state
from fairway.ops.ssd import chunk as chunked
from fairway.ops.ssd import native


@on_gpu("ssd")
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
    """Outputs (B, T, H, P) in the type of x and the final state (B, H, N, P). `delta_BTH` is positive, `A_H` negative.

    `chunk` is for the chunked form.
    """
    given = (x_BTHP, delta_BTH, A_H, B_BTGN, C_BTGN, D_H, state_BHNP, starts_BT)
    if x_BTHP.dtype == torch.bfloat16 and usable(x_BTHP, B_BTGN, C_BTGN):
        return _of_halves(*given)
    return _of_floats(*given, chunk)


def _of_halves(
    x_BTHP: Tensor,
    delta_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor | None,
    state_BHNP: Tensor | None,
    starts_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, _, heads, width = x_BTHP.shape
    delta_BTH = delta_BTH.float()
    carried = None if state_BHNP is None else state_BHNP.float()
    state = initial_state(carried, delta_BTH, batch, heads, B_BTGN.shape[3], width)
    value_BTHP = (x_BTHP * delta_BTH.unsqueeze(-1)).to(x_BTHP.dtype)
    y_BTHP, final = native.recurrence(C_BTGN, B_BTGN, value_BTHP, delta_BTH * A_H.float(), state, starts_BT)
    return (y_BTHP if D_H is None else (y_BTHP + D_H.float().unsqueeze(-1) * x_BTHP).to(x_BTHP.dtype)), final


@full_precision
def _of_floats(
    x_BTHP: Tensor,
    delta_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_H: Tensor | None,
    state_BHNP: Tensor | None,
    starts_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    if not usable(x_BTHP, delta_BTH, A_H, B_BTGN, C_BTGN, D_H, state_BHNP):
        return chunked.ssd(x_BTHP, delta_BTH, A_H, B_BTGN, C_BTGN, D_H, state_BHNP, starts_BT, chunk)
    batch, _, heads, width = x_BTHP.shape
    state = initial_state(state_BHNP, x_BTHP, batch, heads, B_BTGN.shape[3], width)
    value_BTHP = x_BTHP * delta_BTH.unsqueeze(-1)
    y_BTHP, final = native.recurrence(C_BTGN, B_BTGN, value_BTHP, delta_BTH * A_H, state, starts_BT)
    return (y_BTHP if D_H is None else y_BTHP + D_H.unsqueeze(-1) * x_BTHP), final
