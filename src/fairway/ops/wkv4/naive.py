"""The weighted key-value average of RWKV-4 by its definition, one token after another.

`wkv_t = (sum_(i<t) e^(-(t-1-i) w + k_i) v_i + e^(u + k_t) v_t) / (the same with v = 1)`, with a decay w > 0
and a bonus u for the current token, which is not decayed. The sums are carried as (numerator, denominator)
over e^maximum, so that no exponential overflows. The maximum is a scale that cancels in every output;
gradients treat it as a constant. Peng et al. 2023 (arXiv:2305.13048). Shape key: B batch, T time, D channels.
"""

import torch
from torch import Tensor

from fairway.ops.precision import full_precision

NOTHING_SEEN = -1e38

Triple = tuple[Tensor, Tensor, Tensor]


def empty_triple(batch: int, width: int, like: Tensor) -> Triple:
    """The state before the first token, (batch, width) each, with the dtype and device of `like`."""
    return (
        like.new_zeros(batch, width),
        like.new_zeros(batch, width),
        like.new_full((batch, width), NOTHING_SEEN),
    )


@full_precision
def wkv4(
    k_BTD: Tensor,
    v_BTD: Tensor,
    w_D: Tensor,
    u_D: Tensor,
    state: Triple | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Triple]:
    """Outputs (B, T, D) and the final (numerator, denominator, maximum), each (B, D)."""
    batch, length, width = k_BTD.shape
    numerator, denominator, maximum = state or empty_triple(batch, width, k_BTD)
    maximum = maximum.detach()
    outputs = []
    for t in range(length):
        if starts_BT is not None:
            begins_B1 = starts_BT[:, t, None]
            numerator, denominator = (
                numerator.masked_fill(begins_B1, 0.0),
                denominator.masked_fill(begins_B1, 0.0),
            )
            maximum = maximum.masked_fill(begins_B1, NOTHING_SEEN)
        k, v = k_BTD[:, t], v_BTD[:, t]
        top = torch.maximum(maximum, u_D + k).detach()
        past, now = (maximum - top).exp(), (u_D + k - top).exp()
        outputs.append((past * numerator + now * v) / (past * denominator + now))
        top = torch.maximum(maximum - w_D, k).detach()
        past, now = (maximum - w_D - top).exp(), (k - top).exp()
        numerator, denominator, maximum = past * numerator + now * v, past * denominator + now, top
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(v_BTD), (numerator, denominator, maximum)
