"""Which experts a token goes to, and the losses and figures that keep the load even.

Scores `s = softmax(z)` or `sigmoid(z)` of router logits z, in float32 at least. Token choice: the k experts with
the largest `s + b`, gates from s; b is a balancing bias that no gradient touches. Expert choice: each expert takes
the m tokens with its largest s. With f_e the share of assignments to e times E and P_e the mean score: balance loss
`a sum_e f_e P_e` (a where uniform; Fedus et al. 2021, arXiv:2101.03961; Dai et al. 2024, arXiv:2401.06066), device
loss the same over groups of experts, f averaged and P summed within a group; z-loss `mean(logsumexp(z)^2)` (Zoph et
al. 2022, arXiv:2202.08906). Shape key: N tokens, E experts, K chosen, A assignments.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fairway.model.parts import Aux


@dataclass(frozen=True)
class Routing:
    """Assignments of tokens to experts."""

    token_A: Tensor
    expert_A: Tensor
    gate_A: Tensor
    scores_NE: Tensor
    """Scores of all experts before the choice."""
    wanted: int
    """Assignments before any were dropped."""


def scores(logits_NE: Tensor, form: Literal["softmax", "sigmoid"]) -> Tensor:
    """Scores in (0, 1) of every expert."""
    return logits_NE.softmax(-1) if form == "softmax" else torch.sigmoid(logits_NE)


def token_choice(
    scores_NE: Tensor, top: int, *, bias_E: Tensor | None = None, renormalise: bool = False, limit: Tensor | None = None
) -> Routing:
    """Each token takes its `top` experts; `limit` is True for experts a token may not take."""
    ranked_NE = scores_NE if bias_E is None else scores_NE + bias_E.to(scores_NE.dtype)
    if limit is not None:
        ranked_NE = ranked_NE.masked_fill(limit, float("-inf"))
    expert_NK = ranked_NE.topk(top, dim=-1).indices
    gate_NK = scores_NE.gather(1, expert_NK)
    if renormalise:
        gate_NK = gate_NK / gate_NK.sum(-1, keepdim=True).clamp_min(1e-20)
    return of_tokens(expert_NK, gate_NK, scores_NE)


def of_tokens(expert_NK: Tensor, gate_NK: Tensor, scores_NE: Tensor) -> Routing:
    """What each token chose as assignments, token by token."""
    token_NK = torch.arange(len(expert_NK), device=expert_NK.device)[:, None].expand_as(expert_NK)
    return Routing(token_NK.flatten(), expert_NK.flatten(), gate_NK.flatten(), scores_NE, expert_NK.numel())


def expert_choice(scores_NE: Tensor, per_expert: int) -> Routing:
    """Each expert takes its `per_expert` tokens; sees all tokens at once, so later ones sway earlier ones."""
    gate_ME, token_ME = scores_NE.topk(min(per_expert, len(scores_NE)), dim=0)
    expert_ME = torch.arange(scores_NE.shape[1], device=scores_NE.device).expand_as(token_ME)
    return Routing(token_ME.flatten(), expert_ME.flatten(), gate_ME.flatten(), scores_NE, token_ME.numel())


def outside_best_groups(scores_NE: Tensor, groups: int, best: int) -> Tensor:
    """True for experts outside the `best` of `groups` equal groups, ranked by their highest score."""
    count, experts = scores_NE.shape
    highest_NG = scores_NE.view(count, groups, -1).amax(-1)
    kept_NG = torch.zeros_like(highest_NG, dtype=torch.bool).scatter(1, highest_NG.topk(best, dim=-1).indices, True)
    return ~kept_NG.repeat_interleave(experts // groups, dim=1)


def capped(routing: Routing, capacity: int, experts: int, drop: Literal["position", "score"]) -> Routing:
    """Drops what exceeds `capacity` tokens an expert: the latest tokens, or those with the smallest gates."""
    key_A = routing.token_A.to(routing.gate_A.dtype) if drop == "position" else -routing.gate_A.detach()
    by_key = key_A.argsort(stable=True)
    order_A = by_key[routing.expert_A[by_key].argsort(stable=True)]
    counts_E = routing.expert_A.bincount(minlength=experts)
    first_E = counts_E.cumsum(0) - counts_E
    rank_A = torch.arange(len(order_A), device=order_A.device) - first_E[routing.expert_A[order_A]]
    kept_A = order_A[rank_A < capacity].sort().values
    return Routing(
        routing.token_A[kept_A], routing.expert_A[kept_A], routing.gate_A[kept_A], routing.scores_NE, routing.wanted
    )


def load(expert_A: Tensor, experts: int) -> Tensor:
    """Share of the assignments that each expert got times the number of experts; 1 everywhere if even."""
    return expert_A.bincount(minlength=experts).to(torch.float64) * (experts / max(1, expert_A.numel()))


def balance_loss(load_E: Tensor, scores_NE: Tensor) -> Tensor:
    """`sum_e f_e P_e`, P normalised to sum to one; 1 where routing is uniform. The load carries no gradient."""
    mean_E = scores_NE.mean(0)
    return (load_E.to(mean_E.dtype) * (mean_E / mean_E.sum())).sum()


def device_loss(load_E: Tensor, scores_NE: Tensor, groups: int) -> Tensor:
    """The balance loss over groups of experts: mean load, summed scores."""
    mean_E = scores_NE.mean(0)
    share_G = (mean_E / mean_E.sum()).view(groups, -1).sum(-1)
    return (load_E.to(mean_E.dtype).view(groups, -1).mean(-1) * share_G).sum()


def z_loss(logits_NE: Tensor) -> Tensor:
    """Mean squared log-sum-exp of the logits."""
    return logits_NE.logsumexp(-1).square().mean()


def figures(routing: Routing, load_E: Tensor) -> Aux:
    """Load by expert (a vector), its entropy over the largest possible, dead experts, share of drops."""
    experts = len(load_E)
    share_E = load_E / experts
    entropy = -(share_E * share_E.clamp_min(1e-20).log()).sum() / math.log(experts) if experts > 1 else share_E.sum()
    dropped = 1.0 - routing.expert_A.numel() / max(1, routing.wanted)
    return Aux(
        {},
        {
            "load": load_E,
            "load_entropy": entropy,
            "dead_experts": (load_E == 0).sum().to(torch.float64),
            "drop_rate": torch.tensor(dropped, dtype=torch.float64),
        },
    )
