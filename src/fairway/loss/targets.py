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

from fairway.loss.divergence import Divergence, by_logits, with_slope

_LEAST = 1e-7
"""Mass that the rest has at least, so that rounding cannot take all of it."""
_FAINT = 1e-30
"""Below this mass of the student's rest its tokens are compared by their logarithms."""


@dataclass(frozen=True)
class Targets:
    """A teacher's next-token distributions at some temperature."""

    log_p_NM: Tensor
    """Log-probabilities: of all tokens, or of the K likeliest and, last, of the rest together."""
    index_NK: Tensor | None = None
    """The K likeliest tokens; None where all are given."""

    @classmethod
    def of(cls, logits_NV: Tensor, temperature: float, top_k: int | None = None) -> Self:
        """From the teacher's logits."""
        log_p_NV = (logits_NV / temperature).log_softmax(-1)
        if top_k is None or top_k >= log_p_NV.shape[-1]:
            return cls(log_p_NV)
        return cls.of_likeliest(*log_p_NV.topk(top_k, dim=-1))

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
        scaled_NV = (logits_NV / self.temperature).log_softmax(-1)
        if targets.index_NK is None:
            value_N, g_NV = self.divergence(targets.log_p_NM.to(scaled_NV.dtype), scaled_NV)
            slope_NV = by_logits(g_NV, scaled_NV)
        else:
            value_N, slope_NV = self._folded(scaled_NV, targets, targets.index_NK)
        square = self.temperature**2
        return self.weight * square * value_N, self.weight * self.temperature * slope_NV

    def loss(self, logits_NV: Tensor, targets: Targets, kept_N: Tensor | None = None) -> Tensor:
        """Mean over the kept tokens, differentiable by the logits; 0 where none is kept."""
        value_N, slope_NV = self.value_and_slope(logits_NV.detach(), targets)
        if kept_N is not None:
            slope_NV = torch.where(kept_N[:, None], slope_NV, torch.zeros_like(slope_NV))
        return masked_mean(with_slope(value_N, logits_NV, slope_NV), kept_N)

    def _folded(self, log_s_NV: Tensor, targets: Targets, index_NK: Tensor) -> tuple[Tensor, Tensor]:
        s_NV = log_s_NV.exp()
        log_k_NK, s_NK = log_s_NV.gather(-1, index_NK), s_NV.gather(-1, index_NK)
        others_NV = s_NV.scatter_(-1, index_NK, 0.0)
        rest_N1 = others_NV.sum(-1, keepdim=True)
        if bool((rest_N1 < _FAINT).any()):
            return self._folded_by_logarithms(log_s_NV, targets, index_NK)
        folded_NM = torch.cat((log_k_NK, rest_N1.log()), -1)
        value_N, g_NM = self.divergence(targets.log_p_NM.to(log_s_NV.dtype), folded_NM)
        total_N1 = g_NM.sum(-1, keepdim=True)
        # A token of the rest moves the rest's log-probability by its share of the rest.
        slope_NV = others_NV.mul_(g_NM[:, -1:] / rest_N1 - total_N1)
        return value_N, slope_NV.scatter_(-1, index_NK, g_NM[:, :-1] - s_NK * total_N1)

    def _folded_by_logarithms(self, log_s_NV: Tensor, targets: Targets, index_NK: Tensor) -> tuple[Tensor, Tensor]:
        """The same where the rest is too unlikely to be written as a number."""
        log_k_NK = log_s_NV.gather(-1, index_NK)
        others_NV = log_s_NV.scatter(-1, index_NK, float("-inf"))
        rest_N1 = others_NV.logsumexp(-1, keepdim=True)
        folded_NM = torch.cat((log_k_NK, rest_N1), -1)
        value_N, g_NM = self.divergence(targets.log_p_NM.to(log_s_NV.dtype), folded_NM)
        total_N1 = g_NM.sum(-1, keepdim=True)
        slope_NV = (others_NV - rest_N1).exp() * g_NM[:, -1:] - log_s_NV.exp() * total_N1
        return value_N, slope_NV.scatter_add(-1, index_NK, g_NM[:, :-1])


def masked_mean(value_N: Tensor, kept_N: Tensor | None) -> Tensor:
    """Mean of the kept values; those left out count neither above nor below, whatever they hold."""
    if kept_N is None:
        return value_N.mean()
    return torch.where(kept_N, value_N, torch.zeros_like(value_N)).sum() / kept_N.sum().clamp_min(1)
