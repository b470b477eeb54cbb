"""Cross-entropy of soft-capped logits, and its gradient by the logits: the definition.

`l = c tanh(z / c)`, `nats = logsumexp(l) - l[target]`, `L = weight * sum (nats + w logsumexp(l)^2)`. Shape key: N
tokens, V vocabulary, K chosen tokens, M = K + 1 outcomes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pull:
    """A further slope by the capped logits l, of a loss that sees K tokens and all others together.

    At the K tokens `slope_NK`; at the others `share_N softmax(l / temperature)`, taken over the others alone.
    """

    index_NK: Tensor
    others_N: Tensor
    """Their logsumexp of `l / temperature`."""
    share_N: Tensor
    slope_NK: Tensor
    temperature: float = 1.0
    weight: float = 1.0
    """Of the whole slope."""

    def spread(self, capped_NV: Tensor) -> Tensor:
        """The slope at every token."""
        rest_NV = torch.exp(capped_NV / self.temperature - self.others_N[:, None]) * self.share_N[:, None]
        return self.weight * rest_NV.scatter(-1, self.index_NK, self.slope_NK)


def cross_entropy(
    z_NV: Tensor, target_N: Tensor, softcap: float | None, z_loss: float, weight: float, pull: Pull | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats of each token, log-normaliser of each token, and dL/dz of shape (N, V), the pull in it."""
    capped_NV = z_NV if softcap is None else softcap * torch.tanh(z_NV / softcap)
    normaliser_N = capped_NV.logsumexp(-1)
    nats_N = normaliser_N - capped_NV.gather(-1, target_N[:, None])[:, 0]
    slope_NV = torch.exp(capped_NV - normaliser_N[:, None]) * (1 + 2 * z_loss * normaliser_N[:, None])
    slope_NV = slope_NV.scatter_add(-1, target_N[:, None], torch.full_like(nats_N[:, None], -1.0)) * weight
    if pull is not None:
        slope_NV = slope_NV + pull.spread(capped_NV)
    return nats_N, normaliser_N, slope_NV if softcap is None else slope_NV * (1 - (capped_NV / softcap).square())


def fold(z_NV: Tensor, index_NK: Tensor, softcap: float | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of K tokens and of all others together, (N, M), at a temperature; and the others' logsumexp of
    `l / temperature`, (N,)."""
    scaled_NV = (z_NV if softcap is None else softcap * torch.tanh(z_NV / softcap)) / temperature
    others_N1 = scaled_NV.scatter(-1, index_NK, float("-inf")).logsumexp(-1, keepdim=True)
    log_p_NM = torch.cat((scaled_NV.gather(-1, index_NK), others_N1), -1).log_softmax(-1)
    return log_p_NM, others_N1[:, 0]
