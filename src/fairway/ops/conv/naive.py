"""Causal depthwise convolution by its definition, one token after another.

`y_t = b + sum_i w_i .* x_(t - K + 1 + i)` for i = 0 .. K-1, where what lies before the sequence is the
carried state (zeros at the start). Shape key: B batch, T time, D channels, K taps, P = K - 1 carried inputs.
"""

import torch
from torch import Tensor

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
    window = initial_state(state_BPD, x_BTD, batch, weight_DK.shape[1] - 1, width)
    outputs = []
    for t in range(length):
        if starts_BT is not None:
            window = window.masked_fill(starts_BT[:, t, None, None], 0.0)
        seen_BKD = torch.cat((window, x_BTD[:, t : t + 1]), 1)
        y_BD = (seen_BKD * weight_DK.T).sum(1)
        outputs.append(y_BD if bias_D is None else y_BD + bias_D)
        window = seen_BKD[:, 1:]
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(x_BTD), window
