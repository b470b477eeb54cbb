"""Distances between a teacher's and a student's distribution, each with its slope by the student's log-probabilities.

With teacher t and student s over the outcomes m, `g_m = dD / d log s_m` where each log-probability may move by itself:

    forward    KL(t || s) = sum t log(t/s)                               g = -t
    reverse    KL(s || t) = sum s log(s/t)                               g = s (log(s/t) + 1)
    jensen     b KL(t || m) + (1-b) KL(s || m), m = b t + (1-b) s        g = (1-b) s log(s/m)
    skew       KL(t || m), m = b t + (1-b) s                             g = -t (1-b) s / m
    skew back  KL(s || m), m = b s + (1-b) t                             g = s (log(s/m) + 1 - b s/m)

Jensen: Agarwal et al. 2023 (arXiv:2306.13649); divided by b it tends to the forward KL as b -> 0, divided by 1 - b to
the reverse one as b -> 1. Skew: Ko et al. 2024 (arXiv:2402.03898). An outcome of probability zero counts nothing where
the definition's limit does. Shape key: N tokens, M outcomes, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KINDS = ("forward", "reverse", "jensen", "skew", "skew back")


@dataclass(frozen=True)
class Divergence:
    """`(log t_NM, log s_NM) -> (D_N in nats, g_NM)`."""

    kind: Literal["forward", "reverse", "jensen", "skew", "skew back"]
    share: float = 0.0
    """The b above, between 0 and 1, of the kinds that mix."""

    def __call__(self, log_t_NM: Tensor, log_s_NM: Tensor) -> tuple[Tensor, Tensor]:
        t_NM, s_NM, share = log_t_NM.exp(), log_s_NM.exp(), self.share
        if self.kind == "forward":
            return _mean(t_NM, log_t_NM - log_s_NM), -t_NM
        if self.kind == "reverse":
            ratio_NM = log_s_NM - log_t_NM
            return _mean(s_NM, ratio_NM), _product(s_NM, ratio_NM + 1)
        if self.kind == "skew back":
            ratio_NM = log_s_NM - _mixture(share, log_s_NM, log_t_NM)
            return _mean(s_NM, ratio_NM), _product(s_NM, ratio_NM + 1 - share * ratio_NM.exp())
        log_m_NM = _mixture(share, log_t_NM, log_s_NM)
        of_teacher_N = _mean(t_NM, log_t_NM - log_m_NM)
        if self.kind == "skew":
            return of_teacher_N, -(1 - share) * _product(t_NM, (log_s_NM - log_m_NM).exp())
        pull_NM = (1 - share) * _product(s_NM, log_s_NM - log_m_NM)
        return share * of_teacher_N + pull_NM.sum(-1), pull_NM


forward_kl = Divergence("forward")
"""KL(t || s): the student must cover all that the teacher does."""
reverse_kl = Divergence("reverse")
"""KL(s || t): the student keeps to where the teacher is likely."""


def jensen_shannon(beta: float) -> Divergence:
    """Generalised Jensen-Shannon divergence; at `beta` 0 and 1 the plain forward and reverse KL."""
    if beta in (0.0, 1.0):
        return reverse_kl if beta else forward_kl
    return Divergence("jensen", beta)


def skew_kl(skew: float, *, backward: bool = False) -> Divergence:
    """KL(t || skew t + (1 - skew) s), or backward KL(s || skew s + (1 - skew) t); `skew` 0 is the plain KL."""
    if skew == 0.0:
        return reverse_kl if backward else forward_kl
    return Divergence("skew back" if backward else "skew", skew)


@dataclass(frozen=True)
class Softening:
    """What lies between logits z and probabilities: `softmax(cap(z) / temperature)`, each side with its own cap."""

    temperature: float = 1.0
    softcap: float | None = None
    """Of the student."""
    taught_softcap: float | None = None
    """Of the teacher."""


def divergence(
    z_NV: Tensor, taught_NV: Tensor, kind: Divergence, soft: Softening, weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`weight T^2 D(teacher, student)` of logits before their caps, (N,), and its gradient by the student's, (N, V)."""
    capped_NV = _capped(z_NV, soft.softcap)
    log_s_NV = (capped_NV / soft.temperature).log_softmax(-1)
    log_t_NV = (_capped(taught_NV, soft.taught_softcap) / soft.temperature).log_softmax(-1)
    value_N, g_NV = kind(log_t_NV, log_s_NV)
    slope_NV = by_logits(g_NV, log_s_NV) * weight * soft.temperature
    if soft.softcap is not None:
        slope_NV = slope_NV * (1 - (capped_NV / soft.softcap).square())
    return weight * soft.temperature**2 * value_N, slope_NV


def by_logits(g_NM: Tensor, log_s_NM: Tensor) -> Tensor:
    """dD / d logits of `s = softmax(logits)`: `g_i - s_i sum g`."""
    return torch.addcmul(g_NM, log_s_NM.exp(), g_NM.sum(-1, keepdim=True), value=-1)


def with_slope(value_N: Tensor, logits_NV: Tensor, slope_NV: Tensor) -> Tensor:
    """A tensor of these values whose gradient by the logits is the slope, row by row."""
    moved_N = ((logits_NV - logits_NV.detach()) * slope_NV.detach()).sum(-1)
    return value_N.detach() + moved_N


def _capped(z_NV: Tensor, softcap: float | None) -> Tensor:
    return z_NV if softcap is None else softcap * torch.tanh(z_NV / softcap)


def _mixture(share: float, log_a_NM: Tensor, log_b_NM: Tensor) -> Tensor:
    return torch.logaddexp(log_a_NM + math.log(share), log_b_NM + math.log1p(-share))


def _mean(p_NM: Tensor, x_NM: Tensor) -> Tensor:
    return _product(p_NM, x_NM).sum(-1)


def _product(p_NM: Tensor, x_NM: Tensor) -> Tensor:
    """`p x`, and 0 where p is 0 whatever x is."""
    product_NM = p_NM * x_NM
    if bool(product_NM.sum().isfinite()):
        return product_NM
    return torch.where(p_NM == 0, torch.zeros_like(p_NM), product_NM)
