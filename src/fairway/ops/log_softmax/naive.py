"""Log-probabilities of soft-capped logits: the definition.

`l = c tanh(z / c)`, `log p = l - log sum e^l` over the last dimension. Shape key: V vocabulary.
"""

import torch
from torch import Tensor


def log_softmax(z: Tensor, softcap: float | None) -> Tensor:
    """Natural-log probabilities in the dtype of the logits."""
    capped = z if softcap is None else softcap * torch.tanh(z / softcap)
    return capped - capped.logsumexp(-1, keepdim=True)
