"""Causal depthwise convolution with a SiLU behind it, by the fastest path for the tensors at hand.

The native kernel takes float32 and bfloat16 on the CPU, shifted products everything else. See `naive.py` for the
definition of the convolution. Shape key: B batch, T time, D channels, K taps, P = K - 1 carried inputs.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.native import usable
from fairway.ops.conv import chunk, native


def causal_conv_silu(
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    state_BPD: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`silu` of the convolution (B, T, D) in the dtype of x, and the last K - 1 inputs, float32 at least.

    The inputs carried on are zeros where of an earlier document.
    """
    half_or_single = all(
        t is None or t.dtype in (torch.float32, torch.bfloat16) for t in (weight_DK, bias_D, state_BPD)
    )
    if not usable(x_BTD) or not half_or_single or not x_BTD.shape[1]:
        y_BTD, last_BPD = chunk.causal_conv(x_BTD, weight_DK, bias_D, state_BPD, starts_BT)
        return functional.silu(y_BTD), last_BPD
    if state_BPD is None:
        state_BPD = weight_DK.new_zeros(len(x_BTD), weight_DK.shape[1] - 1, x_BTD.shape[2], dtype=torch.float32)
    return native.causal_conv(x_BTD, weight_DK, bias_D, state_BPD, starts_BT, silu=True)
