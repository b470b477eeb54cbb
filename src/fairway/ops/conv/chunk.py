"""Causal depthwise convolution of a whole sequence as a sum of shifted products.

`y = b + sum_i w_i .* shift(x, K - 1 - i)`. A shifted input counts only where no document began in between.
Shape key: B batch, T time, D channels, K taps, P = K - 1 carried inputs, L = P + T.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state


@full_precision
def causal_conv(
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    state_BPD: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, D) and the last K - 1 inputs (B, K - 1, D), zeros where of an earlier document."""
    batch, length, width = x_BTD.shape
    carried = weight_DK.shape[1] - 1
    state = initial_state(state_BPD, x_BTD, batch, carried, width)
    x_BLD = torch.cat((state.to(x_BTD.dtype), x_BTD), 1)
    document_BL = None if starts_BT is None else functional.pad(starts_BT.long().cumsum(1), (carried, 0))
    y_BTD = x_BTD * weight_DK[:, -1] if bias_D is None else torch.addcmul(bias_D, x_BTD, weight_DK[:, -1])
    for back in range(1, carried + 1):
        shifted_BTD = x_BLD[:, carried - back : carried - back + length]
        if document_BL is not None:
            same_BT = document_BL[:, carried:] == document_BL[:, carried - back : carried - back + length]
            shifted_BTD = shifted_BTD * same_BT.unsqueeze(-1)
        y_BTD = torch.addcmul(y_BTD, shifted_BTD, weight_DK[:, -1 - back])
    last_BPD = x_BLD[:, length:].clone()  # a view would keep the whole sequence alive
    if document_BL is not None:
        last_BPD = last_BPD * (document_BL[:, length:] == document_BL[:, -1:]).unsqueeze(-1)
    return y_BTD, last_BPD
