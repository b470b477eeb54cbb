"""Causal attention, one query at a time: the definition.

`y_t = sum_s p_ts v_s`, `p_t = softmax over s in [first_t, t'] of cap(q_t k_s / sqrt(K))`, where t' is the query's own
place among the keys, `cap(z) = c tanh(z / c)` if a soft cap c is given, and head h reads key group h // (H / G).
Vaswani et al. 2017; grouped queries: Ainslie et al. 2023. Shape key: B batch, H heads, G key groups, T queries, S
keys, K head width.
"""

import torch
from torch import Tensor


def attend(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, first_BT: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Attention of the last T of S positions to everything from `first_BT` (an index of a key) up to themselves.

    Returns (B, H, T, K). `first_BT=None` lets every query see all keys up to its own.
    """
    batch, heads, queries, width = q_BHTK.shape
    groups, keys = k_BGSK.shape[1:3]
    rows = []
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // groups)
            for t in range(queries):
                first = 0 if first_BT is None else int(first_BT[b, t])
                own = keys - queries + t
                score_S = (k_BGSK[b, g, first : own + 1] @ q_BHTK[b, h, t]) / width**0.5
                if softcap is not None:
                    score_S = softcap * torch.tanh(score_S / softcap)
                rows.append(score_S.softmax(-1) @ v_BGSK[b, g, first : own + 1])
    return torch.stack(rows).view(batch, heads, queries, -1)
