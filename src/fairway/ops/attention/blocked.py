"""Causal attention in blocks of queries, each against the keys it may see, by batched matrix products.

Half of the score matrix is never computed, and queries that share a key group share one product. See `naive.py` for the
definition. Shape key: B batch, H heads, G key groups, R heads per group, T queries, S keys, K head width.
"""

import torch
from torch import Tensor

BLOCK = 128


def attend(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, first_BT: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """The same as `naive.attend`; probabilities are rounded to the values' dtype before they weigh them."""
    batch, heads, queries, width = q_BHTK.shape
    groups, keys = k_BGSK.shape[1:3]
    repeats = heads // groups
    q_BGRTK = (q_BHTK * width**-0.5).view(batch, groups, repeats, queries, width)
    kT_BGKS = k_BGSK.transpose(-1, -2)
    outputs = []
    for start in range(0, queries, BLOCK):
        stop = min(start + BLOCK, queries)
        seen = keys - queries + stop
        q_BGNK = q_BGRTK[:, :, :, start:stop].reshape(batch, groups, -1, width)
        score_BGNS = torch.matmul(q_BGNK, kT_BGKS[..., :seen])
        if softcap is not None:
            score_BGNS = softcap * torch.tanh(score_BGNS / softcap)
        score = score_BGNS.view(batch, groups, repeats, stop - start, seen)
        if stop - start > 1 or first_BT is not None:
            hidden = _hidden(start, stop, keys - queries, seen, first_BT, score.device)
            score = score.masked_fill(hidden, float("-inf"))
        p_BGNS = score.softmax(-1).to(v_BGSK.dtype).view(batch, groups, -1, seen)
        y_BGNK = torch.matmul(p_BGNS, v_BGSK[:, :, :seen])
        outputs.append(y_BGNK.view(batch, groups, repeats, stop - start, -1))
    return torch.cat(outputs, dim=3).view(batch, heads, queries, -1)


def _hidden(start: int, stop: int, offset: int, seen: int, first_BT: Tensor | None, device: torch.device) -> Tensor:
    """True where query and key must not meet; broadcasts over (B, G, R, queries of the block, keys seen)."""
    key_S = torch.arange(seen, device=device)
    own_T = torch.arange(start + offset, stop + offset, device=device)
    hidden_TS = key_S > own_T[:, None]
    if first_BT is None:
        return hidden_TS
    return (hidden_TS | (key_S < first_BT[:, start:stop, None]))[:, None, None]
