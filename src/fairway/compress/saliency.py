"""How much of a trained model may go: what removing weights should cost, matrix by matrix, before anything is removed.

`s_q = 1/2 H_qq w_q^2` is the expected rise of the loss if weight q alone becomes zero; that of several is their sum,
which leaves out how they act together. `H_qq = T mean_s (dL_s / dw_q)^2`, L_s the mean loss of a sequence of T tokens
whose slopes are taken as independent. LeCun et al. 1990.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairway.compress.curvature import fisher_diagonal, sequence_losses
from fairway.compress.masks import count_of, prunable
from fairway.core.errors import ConfigError
from fairway.model.lm import LanguageModel

SHARES = (0.25, 0.5, 0.75)
"""Of a matrix, for which the rise is told."""


@dataclass(frozen=True)
class Saliency:
    """Of one matrix, or of all together; rises in nats a token."""

    name: str
    weights: int
    zeros: float
    """Share that is zero already."""
    total: float
    """Rise if all of it went."""
    rises: tuple[float, ...]
    """Rise if that share went for each of `SHARES`, the least salient first."""
    by_size: tuple[float, ...]
    """The same where the smallest weights go instead."""


def saliencies(model: LanguageModel, calibration: Sequence[Tensor]) -> list[Saliency]:
    """Every prunable matrix, and last all of them ranked together; `calibration`: token ids (B, T + 1)."""
    if not calibration:
        raise ConfigError("Saliency is measured on text, but no calibration text was given.")
    model.requires_grad_(True).eval()
    named = dict(model.named_parameters())
    parameters = {name: named[name] for name in prunable(model)}
    curvature = fisher_diagonal(sequence_losses(model, calibration, sampled=False), parameters)
    half = 0.5 * (calibration[0].shape[1] - 1)
    flat = {name: parameter.detach().double().flatten() for name, parameter in parameters.items()}
    scores = {name: half * curvature[name].double().flatten() * weight.square() for name, weight in flat.items()}
    rows = [_row(name, scores[name], weight) for name, weight in flat.items()]
    return [*rows, _row("all", torch.cat(list(scores.values())), torch.cat(list(flat.values())))]


def _row(name: str, score: Tensor, weight: Tensor) -> Saliency:
    zeros = float((weight == 0).double().mean())
    by_score, by_size = score.sort().values, score[weight.abs().argsort(stable=True)]
    rises, sizes = (tuple(_sum_of(share, ordered) for share in SHARES) for ordered in (by_score, by_size))
    return Saliency(name, len(score), zeros, float(score.sum()), rises, sizes)


def _sum_of(share: float, ordered: Tensor) -> float:
    return float(ordered[: count_of(share, len(ordered))].sum())
