"""The weighted key-value average of RWKV-4, parallel over time but for two fused steps per token.

The running maximum `m_t = max(m_(t-1) - w, k_t)` is found first and held constant; numerator and denominator
over e^m_t are then one linear recurrence with decay `exp(m_(t-1) - w - m_t)` and writes `exp(k_t - m_t) (v_t,
1)`. Peng et al. 2023 (arXiv:2305.13048). Shape key: B batch, T time, D channels.
"""

import torch
from torch import Tensor

from fairway.ops.precision import full_precision
from fairway.ops.recurrence import recurrence, states_before
from fairway.ops.wkv4.naive import NOTHING_SEEN, Triple, empty_triple


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
    numerator_BD, denominator_BD, maximum_BD = state or empty_triple(k_BTD.shape[0], k_BTD.shape[2], k_BTD)
    k_TBD, v_TBD = k_BTD.transpose(0, 1), v_BTD.transpose(0, 1)
    starts_TB1 = None if starts_BT is None else starts_BT.T.unsqueeze(-1)
    before_TBD, after_TBD, final_BD = _maxima(k_TBD.detach(), w_D.detach(), maximum_BD.detach(), starts_TB1)

    decay_TBD = (before_TBD - w_D - after_TBD).exp()
    own_TBD = (k_TBD - after_TBD).exp()
    write_TPBD = torch.stack((own_TBD * v_TBD, own_TBD), 1)
    initial_PBD = torch.stack((numerator_BD, denominator_BD))
    sums_TPBD, final_PBD = recurrence(decay_TBD.unsqueeze(1), write_TPBD, initial_PBD)
    past_TPBD = states_before(sums_TPBD, initial_PBD)

    top_TBD = torch.maximum(before_TBD, u_D + k_TBD).detach()
    past_weight_TBD, now_TBD = (before_TBD - top_TBD).exp(), (u_D + k_TBD - top_TBD).exp()
    numerators_TBD = past_weight_TBD * past_TPBD[:, 0] + now_TBD * v_TBD
    denominators_TBD = past_weight_TBD * past_TPBD[:, 1] + now_TBD
    return (numerators_TBD / denominators_TBD).transpose(0, 1), (final_PBD[0], final_PBD[1], final_BD)


@torch.library.custom_op("fairway::wkv4_maxima", mutates_args=())
def _maxima(k_TBD: Tensor, w_D: Tensor, maximum_BD: Tensor, starts_TB1: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The running maximum each step starts from and ends with, (T, B, D) each, and the last one."""
    k_TBD = k_TBD.contiguous()
    before_TBD, after_TBD = torch.empty_like(k_TBD), torch.empty_like(k_TBD)
    starts = [None] * len(k_TBD) if starts_TB1 is None else starts_TB1.unbind(0)
    steps = zip(k_TBD.unbind(0), starts, before_TBD.unbind(0), after_TBD.unbind(0), strict=True)
    for k_BD, start_B1, before_BD, after_BD in steps:
        before_BD.copy_(maximum_BD if start_B1 is None else maximum_BD.masked_fill(start_B1, NOTHING_SEEN))
        maximum_BD = torch.maximum(before_BD - w_D, k_BD, out=after_BD)
    return before_TBD, after_TBD, maximum_BD.clone(memory_format=torch.contiguous_format)


@_maxima.register_fake
def _(
    k_TBD: Tensor,
    w_D: Tensor,  # noqa: ARG001
    maximum_BD: Tensor,
    starts_TB1: Tensor | None,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    steps = torch.empty_like(k_TBD, memory_format=torch.contiguous_format)
    return steps, torch.empty_like(steps), torch.empty_like(maximum_BD, memory_format=torch.contiguous_format)
