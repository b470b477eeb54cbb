"""Distances between a teacher's and a student's distribution, each with its slope by the student's log-probabilities.

With teacher t and student s over the outcomes m, `g_m = dD / d log s_m` where each log-probability may move by itself:

    forward    KL(t || s) = sum t log(t/s)                               g = -t
    reverse    KL(s || t) = sum s log(s/t)                               g = s (log(s/t) + 1)
    jensen     b KL(t || m) + (1-b) KL(s || m), m = b t + (1-b) s        g = (1-b) s log(s/m)
    skew       KL(t || m), m = b t + (1-b) s                             g = -t (1-b) s / m
    skew back  KL(s || m), m = b s + (1-b) t                             g = s (log(s/m) + 1 - b s/m)

Jensen: Agarwal et al. 2023 (arXiv:2306.13649); divided by b it tends to the forward KL as b -> 0, divided by 1 - b to
the reverse one as b -> 1. Skew: Ko et al. 2024 (arXiv:2402.03898). An outcome of probability zero counts nothing where
the definition's limit does. Shape key: N tokens, M outcomes.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(log t_NM, log s_NM) -> (D_N in nats, g_NM)."""


def forward_kl(log_t_NM: Tensor, log_s_NM: Tensor) -> tuple[Tensor, Tensor]:
    """KL(t || s): the student must cover all that the teacher does."""
    t_NM = log_t_NM.exp()
    return _mean(t_NM, log_t_NM - log_s_NM), -t_NM


def reverse_kl(log_t_NM: Tensor, log_s_NM: Tensor) -> tuple[Tensor, Tensor]:
    """KL(s || t): the student keeps to where the teacher is likely."""
    s_NM = log_s_NM.exp()
    ratio_NM = log_s_NM - log_t_NM
    return _mean(s_NM, ratio_NM), _product(s_NM, ratio_NM + 1)


def jensen_shannon(beta: float) -> Divergence:
    """Generalised Jensen-Shannon divergence; at `beta` 0 and 1 the plain forward and reverse KL."""
    if beta in (0.0, 1.0):
        return reverse_kl if beta else forward_kl
    return partial(_jensen_shannon, beta)


def skew_kl(skew: float, *, backward: bool = False) -> Divergence:
    """KL(t || skew t + (1 - skew) s), or backward KL(s || skew s + (1 - skew) t); `skew` 0 is the plain KL."""
    if skew == 0.0:
        return reverse_kl if backward else forward_kl
    return partial(_skew_backward if backward else _skew_forward, skew)


def by_logits(g_NM: Tensor, log_s_NM: Tensor) -> Tensor:
    """dD / d logits of `s = softmax(logits)`: `g_i - s_i sum g`."""
    return torch.addcmul(g_NM, log_s_NM.exp(), g_NM.sum(-1, keepdim=True), value=-1)


def with_slope(value_N: Tensor, logits_NV: Tensor, slope_NV: Tensor) -> Tensor:
    """A tensor of these values whose gradient by the logits is the slope, row by row."""
    moved_N = ((logits_NV - logits_NV.detach()) * slope_NV.detach()).sum(-1)
    return value_N.detach() + moved_N


def _jensen_shannon(beta: float, log_t_NM: Tensor, log_s_NM: Tensor) -> tuple[Tensor, Tensor]:
    log_m_NM = _mixture(beta, log_t_NM, log_s_NM)
    t_NM, s_NM = log_t_NM.exp(), log_s_NM.exp()
    pull_NM = _product(s_NM, log_s_NM - log_m_NM)
    value_N = beta * _mean(t_NM, log_t_NM - log_m_NM) + (1 - beta) * pull_NM.sum(-1)
    return value_N, (1 - beta) * pull_NM


def _skew_forward(skew: float, log_t_NM: Tensor, log_s_NM: Tensor) -> tuple[Tensor, Tensor]:
    log_m_NM = _mixture(skew, log_t_NM, log_s_NM)
    t_NM = log_t_NM.exp()
    share_NM = _product(t_NM, (log_s_NM - log_m_NM).exp())
    return _mean(t_NM, log_t_NM - log_m_NM), -(1 - skew) * share_NM


def _skew_backward(skew: float, log_t_NM: Tensor, log_s_NM: Tensor) -> tuple[Tensor, Tensor]:
    ratio_NM = log_s_NM - _mixture(skew, log_s_NM, log_t_NM)
    s_NM = log_s_NM.exp()
    return _mean(s_NM, ratio_NM), _product(s_NM, ratio_NM + 1 - skew * ratio_NM.exp())


def _mixture(share: float, log_a_NM: Tensor, log_b_NM: Tensor) -> Tensor:
    return torch.logaddexp(log_a_NM + math.log(share), log_b_NM + math.log1p(-share))


def _mean(p_NM: Tensor, x_NM: Tensor) -> Tensor:
    return _product(p_NM, x_NM).sum(-1)


def _product(p_NM: Tensor, x_NM: Tensor) -> Tensor:
    """`p x`, and 0 where p is 0 whatever x is."""
    product_NM = p_NM * x_NM
    if bool(product_NM.sum().isfinite()):
        return product_NM
    return torch.where(p_NM > 0, product_NM, torch.zeros_like(p_NM))
