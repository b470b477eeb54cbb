"""The likeliest tokens of soft-capped logits: the definition.

`l = c tanh(z / c)`, `log p = log softmax(l / T)` of the K tokens with the largest logits z. Shape key: N tokens, V
vocabulary, K likeliest tokens.
"""

import torch
from torch import Tensor


def likeliest(z_NV: Tensor, few: int, softcap: float | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ids, (N, K), the likeliest first and of equal ones the smallest id."""
    index_NK = z_NV.sort(dim=-1, descending=True, stable=True).indices[:, :few]
    capped_NV = z_NV if softcap is None else softcap * torch.tanh(z_NV / softcap)
    return (capped_NV / temperature).log_softmax(-1).gather(-1, index_NK), index_NK
