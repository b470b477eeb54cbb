"""What a teacher says of the next token: all of its distribution, or its k likeliest tokens and the mass of the rest.

The rest is one outcome of its own. Both distributions are folded alike, so a divergence of what is left is a lower
bound of the whole one (data processing), and equals it where k is the vocabulary. At temperature T both sides are
`softmax(logits / T)`, and the divergence is multiplied by T^2, so that its gradient keeps its size as T grows (Hinton
et al. 2015, arXiv:1503.02531). Shape key: N tokens, V vocabulary, K likeliest tokens, M outcomes (V, or K + 1).
"""

import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from fairway.ops.cross_entropy.naive import Pull
from fairway.ops.cross_entropy.native import fold
from fairway.ops.divergence.naive import Divergence, Softening, by_logits, with_slope
from fairway.ops.divergence.native import divergence_
from fairway.ops.likeliest.native import likeliest

_LEAST = 1e-7
"""Mass that the rest has at least, so that rounding cannot take all of it."""


@dataclass(frozen=True)
class Targets:
    """A teacher's next-token distributions at some temperature."""

    log_p_NM: Tensor
    """Log-probabilities: of all tokens, or of the K likeliest and, last, of the rest together."""
    index_NK: Tensor | None = None
    """The K likeliest tokens; None where all are given."""

    @classmethod
    def of(cls, logits_NV: Tensor, temperature: float, top_k: int | None = None) -> Self:
        """From the teacher's logits. Not differentiable."""
        if top_k is None or top_k >= logits_NV.shape[-1]:
            return cls(_cooled(logits_NV, temperature).log_softmax(-1))
        return cls.of_likeliest(*likeliest(logits_NV.detach(), top_k, None, temperature))

    @classmethod
    def of_likeliest(cls, log_p_NK: Tensor, index_NK: Tensor) -> Self:
        """From the log-probabilities of some tokens; what they lack to 1 is the rest's."""
        held_N1 = log_p_NK.logsumexp(-1, keepdim=True)
        most_N1 = held_N1.clamp_max(math.log1p(-_LEAST))
        rest_N1 = torch.log(-torch.expm1(most_N1))
        return cls(torch.cat((log_p_NK - (held_N1 - most_N1), rest_N1), -1), index_NK)


class Predictions(Protocol):
    """A teacher's targets for the tokens of a micro-batch, asked for piece by piece."""

    def targets(self, span: slice, temperature: float) -> Targets:
        """Of the tokens `span`, counted row by row through the micro-batch."""
        ...


@dataclass(frozen=True)
class TokenTerm:
    """`weight T^2 D(teacher, student)` at every token."""

    divergence: Divergence
    temperature: float
    weight: float

    @torch.no_grad()
    def value_and_slope(self, logits_NV: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """The term at each token, (N,), and its gradient by the student's logits, (N, V)."""
        if targets.index_NK is not None:
            log_s_NM, others_N = fold(logits_NV, targets.index_NK, None, self.temperature)
            value_N, slope_NM = self.folded(log_s_NM, targets)
            pull = Pull(targets.index_NK, others_N, slope_NM[:, -1], slope_NM[:, :-1], self.temperature)
            return value_N, pull.spread(logits_NV)
        log_s_NV = _cooled(logits_NV, self.temperature).log_softmax(-1)
        return self._weighted(log_s_NV, targets)

    @torch.no_grad()
    def whole(
        self, z_NV: Tensor, softcap: float | None, taught_NV: Tensor, taught_softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """The term at each token, (N,), and its gradient by z, (N, V), of a student's and a teacher's logits before
        their soft caps; the teacher's may be overwritten."""
        soft = Softening(self.temperature, softcap, taught_softcap)
        return divergence_(z_NV, taught_NV, self.divergence, soft, self.weight)

    @torch.no_grad()
    def folded(self, log_s_NM: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """The term at each token, (N,), and its gradient, (N, M), by the student's logits of the K likeliest tokens
        and by all others moved together, from its log-probabilities at the term's temperature."""
        assert targets.index_NK is not None
        return self._weighted(log_s_NM, targets)

    def loss(self, logits_NV: Tensor, targets: Targets, kept_N: Tensor | None = None) -> Tensor:
        """Mean over the kept tokens, differentiable by the logits; 0 where none is kept."""
        value_N, slope_NV = self.value_and_slope(logits_NV.detach(), targets)
        if kept_N is not None:
            slope_NV = torch.where(kept_N[:, None], slope_NV, torch.zeros_like(slope_NV))
        return masked_mean(with_slope(value_N, logits_NV, slope_NV), kept_N)

    def _weighted(self, log_s_NM: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        value_N, g_NM = self.divergence(targets.log_p_NM.to(log_s_NM.dtype), log_s_NM)
        slope_NM = by_logits(g_NM, log_s_NM)
        return self.weight * self.temperature**2 * value_N, slope_NM.mul_(self.weight * self.temperature)


def masked_mean(value_N: Tensor, kept_N: Tensor | None) -> Tensor:
    """Mean of the kept values; those left out count neither above nor below, whatever they hold."""
    if kept_N is None:
        return value_N.mean()
    return torch.where(kept_N, value_N, torch.zeros_like(value_N)).sum() / kept_N.sum().clamp_min(1)


def _cooled(logits_NV: Tensor, temperature: float) -> Tensor:
    return logits_NV if temperature == 1.0 else logits_NV / temperature
