"""The router of a mixture of experts, each token choosing for itself: the definition.

`z = x W^T`, `s = softmax(z)` or `sigmoid(z)`; a token takes the `top` experts with the largest `s + b`, and its gates
are their s, over their sum if renormalised. Shazeer et al. 2017 (arXiv:1701.06538). Shape key: N tokens, D width, E
experts, K chosen.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional

Form = Literal["softmax", "sigmoid"]

SMALLEST_SUM = 1e-20


@dataclass(frozen=True)
class Routed:
    """Logits and scores of all experts; the chosen ones and their gates, the largest first."""

    logits_NE: Tensor
    scores_NE: Tensor
    expert_NK: Tensor
    gate_NK: Tensor


def route(x_ND: Tensor, router_ED: Tensor, bias_E: Tensor | None, top: int, form: Form, *, renormalise: bool) -> Routed:
    """Which experts tokens go to; no gradient by the bias."""
    logits_NE = functional.linear(x_ND, router_ED)
    scores_NE = logits_NE.softmax(-1) if form == "softmax" else logits_NE.sigmoid()
    ranked_NE = scores_NE if bias_E is None else scores_NE + bias_E.to(scores_NE.dtype)
    expert_NK = ranked_NE.topk(top, dim=-1).indices
    gate_NK = scores_NE.gather(1, expert_NK)
    if renormalise:
        gate_NK = gate_NK / gate_NK.sum(-1, keepdim=True).clamp_min(SMALLEST_SUM)
    return Routed(logits_NE, scores_NE, expert_NK, gate_NK)
