"""Linear attention by the fastest path for the tensors at hand.

The native kernel of Mamba-2's state space, with decays of 1 and a column of ones for the normaliser, takes float32 on
the CPU, the chunked form everything else. See `naive.py` for the definition.
Shape key: B batch, T time, H heads, K key width, V value width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.native import usable
from fairway.ops.linear_attention import chunk as chunked
from fairway.ops.linear_attention.feature_maps import FEATURE_MAPS, FeatureMap
from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state
from fairway.ops.ssd import native


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
    """Outputs (B, T, H, V) and the final S (B, H, K, V) and z (B, H, K). `chunk` is for the chunked form."""
    if not usable(q_BTHK, k_BTHK, v_BTHV, *(state or ())):
        return chunked.linear_attention(
            q_BTHK, k_BTHK, v_BTHV, state, starts_BT, feature_map, normalise, eps, chunk
        )  # fmt: skip
    batch, length, heads, key_width = q_BTHK.shape
    S_BHKV = initial_state(state and state[0], v_BTHV, batch, heads, key_width, v_BTHV.shape[3])
    z_BHK = initial_state(state and state[1], v_BTHV, batch, heads, key_width)
    joint_BHKV = torch.cat((S_BHKV, z_BHK.unsqueeze(-1)), -1)
    values_BTHV = functional.pad(v_BTHV, (0, 1), value=1.0)
    no_decay_BTH = v_BTHV.new_zeros(batch, length, heads)
    phi = FEATURE_MAPS[feature_map]
    sums_BTHV, joint_BHKV = native.recurrence(
        phi(q_BTHK), phi(k_BTHK), values_BTHV, no_decay_BTH, joint_BHKV, starts_BT
    )
    output_BTHV = sums_BTHV[..., :-1] / (sums_BTHV[..., -1:] + eps) if normalise else sums_BTHV[..., :-1]
    return output_BTHV, (joint_BHKV[..., :-1], joint_BHKV[..., -1])
