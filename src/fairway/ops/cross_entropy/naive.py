"""Cross-entropy of soft-capped logits, and its gradient by the logits: the definition.

`l = c tanh(z / c)`, `nats = logsumexp(l) - l[target]`, `L = weight * sum (nats + w logsumexp(l)^2)`. Shape key: N
tokens, V vocabulary.
"""

import torch
from torch import Tensor


def cross_entropy(
    z_NV: Tensor, target_N: Tensor, softcap: float | None, z_loss: float, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats of each token, log-normaliser of each token, and dL/dz of shape (N, V)."""
    capped_NV = z_NV if softcap is None else softcap * torch.tanh(z_NV / softcap)
    normaliser_N = capped_NV.logsumexp(-1)
    nats_N = normaliser_N - capped_NV.gather(-1, target_N[:, None])[:, 0]
    slope_NV = torch.exp(capped_NV - normaliser_N[:, None]) * (1 + 2 * z_loss * normaliser_N[:, None])
    slope_NV = slope_NV.scatter_add(-1, target_N[:, None], torch.full_like(nats_N[:, None], -1.0)) * weight
    return nats_N, normaliser_N, slope_NV if softcap is None else slope_NV * (1 - (capped_NV / softcap).square())
