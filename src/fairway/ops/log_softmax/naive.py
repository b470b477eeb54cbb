"""Log-probabilities of soft-capped logits: the definition.

`l = c tanh(z / c)`, `log p = l - log sum e^l` over the last dimension; their powers of e sum to one. Shape key: V
vocabulary.
"""

import torch
from torch import Tensor


def log_softmax(z: Tensor, softcap: float | None) -> Tensor:
    """Natural-log probabilities in the dtype of the logits."""
    capped = z if softcap is None else softcap * torch.tanh(z / softcap)
    return capped - capped.logsumexp(-1, keepdim=True)


def total_probability(log_p: Tensor) -> Tensor:
    """`sum e^log_p` over the last dimension: 1 for every distribution."""
    return log_p.logsumexp(-1).exp()
