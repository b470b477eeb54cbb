"""Causal attention by torch's fused kernels (FlashAttention, memory-efficient attention), for GPUs.

No score ever reaches memory. Without documents or a window the kernels know the causal shape themselves; otherwise
they are given what each query may see, one bit for each pair. See `naive.py` for the definition. Dao et al. 2022
(arXiv:2205.14135).
Shape key: B batch, H heads, G key groups, T queries, S keys, K head width.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, first_BT: Tensor | None = None) -> Tensor:
    """The same as `naive.attend` without a soft cap."""
    heads, queries = q_BHTK.shape[1:3]
    groups, keys = k_BGSK.shape[1:3]
    if first_BT is None and queries in (1, keys):
        causal, shared = queries > 1, heads != groups
        return scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, is_causal=causal, enable_gqa=shared)
    key_S = torch.arange(keys, device=q_BHTK.device)
    see_TS = key_S <= key_S[keys - queries :, None]
    see = see_TS if first_BT is None else (see_TS & (key_S >= first_BT[..., None]))[:, None]
    k_BHSK, v_BHSK = (x.repeat_interleave(heads // groups, dim=1) for x in (k_BGSK, v_BGSK))
    return scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=see)
