"""Linear attention chunk by chunk: the recurrence without decay, and a column of ones for the normaliser.

Katharopoulos et al. 2020 (arXiv:2006.16236). Shape key: B batch, T time, H heads, K key width, V value width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fairway.ops.decay import scalar_decay
from fairway.ops.linear_attention.feature_maps import FEATURE_MAPS, FeatureMap
from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state


@full_precision
def linear_attention(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    state: tuple[Tensor, Tensor] | None = None,
    starts_BT: Tensor | None = None,
    feature_map: FeatureMap = "elu_plus_one",
    normalise: bool = True,
    eps: float = 1e-6,
    chunk: int = 64,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Outputs (B, T, H, V) and the final S (B, H, K, V) and z (B, H, K).

    Without `normalise`, `o_t = phi(q_t) S_t`.
    """
    batch, _, heads, key_width = q_BTHK.shape
    S_BHKV = initial_state(state and state[0], v_BTHV, batch, heads, key_width, v_BTHV.shape[3])
    z_BHK = initial_state(state and state[1], v_BTHV, batch, heads, key_width)
    phi = FEATURE_MAPS[feature_map]
    joint_BHKV = torch.cat((S_BHKV, z_BHK.unsqueeze(-1)), -1)
    values_BTHV = functional.pad(v_BTHV, (0, 1), value=1.0)
    sums_BTHV, joint_BHKV = scalar_decay(phi(q_BTHK), phi(k_BTHK), values_BTHV, None, joint_BHKV, starts_BT, chunk)
    output_BTHV = sums_BTHV[..., :-1] / (sums_BTHV[..., -1:] + eps) if normalise else sums_BTHV[..., :-1]
    return output_BTHV, (joint_BHKV[..., :-1], joint_BHKV[..., -1])
