"""One token drawn from logits by one number: the definition.

`p = softmax(logits / temperature)`; top-k, top-p and min-p, in this order, set what they do not keep to zero, and what
is kept is rescaled to sum to one. The token drawn by u in [0, 1) is the first whose cumulative probability, in the
order of ids, exceeds u. Shape key: V vocabulary.
"""

import torch
from torch import Tensor


def probabilities(
    logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> Tensor:
    """The distribution that a token is drawn from, in float64 on the CPU; equal logits rank by id."""
    logits_V = logits_V.detach().to("cpu", torch.float64)
    scaled_V = (logits_V - logits_V.max()) / temperature
    p_V, order_V = scaled_V.softmax(-1).sort(descending=True, stable=True)
    if top_k is not None:
        p_V[top_k:] = 0
        p_V /= p_V.sum()
    if top_p is not None:
        before_V = p_V.cumsum(-1) - p_V
        p_V[before_V >= top_p] = 0
        p_V /= p_V.sum()
    if min_p is not None:
        p_V[p_V < min_p * p_V[0]] = 0
        p_V /= p_V.sum()
    return torch.zeros_like(p_V).scatter_(0, order_V, p_V)


def sample(
    logits_V: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    uniform: float,
) -> int:
    """One token id."""
    p_V = probabilities(logits_V, temperature, top_k, top_p, min_p)
    assert bool(p_V.isfinite().all()), "logits are not finite"
    total_V = p_V.cumsum(-1)
    last = int(p_V.nonzero()[-1])
    return min(last, int(torch.searchsorted(total_V, uniform * total_V[-1], right=True)))
