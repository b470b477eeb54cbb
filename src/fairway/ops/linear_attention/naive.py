"""Linear attention by its definition, one token after another.

`S_t = S_(t-1) + phi(k_t)^T v_t`, `z_t = z_(t-1) + phi(k_t)`, `o_t = phi(q_t) S_t / (phi(q_t) . z_t + eps)`.
Katharopoulos et al. 2020 (arXiv:2006.16236). Shape key: B batch, T time, H heads, K key width, V value width.
"""

import torch
from torch import Tensor

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
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Outputs (B, T, H, V) and the final S (B, H, K, V) and z (B, H, K).

    Without `normalise`, `o_t = phi(q_t) S_t`.
    """
    batch, length, heads, key_width = q_BTHK.shape
    S_BHKV = initial_state(state and state[0], v_BTHV, batch, heads, key_width, v_BTHV.shape[3])
    z_BHK = initial_state(state and state[1], v_BTHV, batch, heads, key_width)
    phi = FEATURE_MAPS[feature_map]
    outputs = []
    for t in range(length):
        if starts_BT is not None:
            S_BHKV = S_BHKV.masked_fill(starts_BT[:, t, None, None, None], 0.0)
            z_BHK = z_BHK.masked_fill(starts_BT[:, t, None, None], 0.0)
        k_BHK, q_BHK = phi(k_BTHK[:, t]), phi(q_BTHK[:, t])
        S_BHKV = S_BHKV + k_BHK[:, :, :, None] * v_BTHV[:, t, :, None, :]
        z_BHK = z_BHK + k_BHK
        o_BHV = (q_BHK[:, :, None, :] @ S_BHKV).squeeze(2)
        outputs.append(o_BHV / ((q_BHK * z_BHK).sum(-1, keepdim=True) + eps) if normalise else o_BHV)
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(v_BTHV), (S_BHKV, z_BHK)
