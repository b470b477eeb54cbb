"""Choosing which weights to keep by their scores, with exact counts.

Shape key: R rows (outputs), C columns (inputs).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from fairway.compress.parts import PrunerConfig
from fairway.model.lm import LanguageModel
from fairway.model.parts import Role, parameter_roles

Scope = Literal["layer", "row", "global"]


def _is_pattern(text: str) -> str:
    match = re.fullmatch(r"(\d{1,2}):(\d{1,2})", text)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise ValueError(f"{text!r} was given; 2:4 (keep 2 of every 4 inputs) or 4:8 would work")
    return text


Pattern = Annotated[str, AfterValidator(_is_pattern)]


class SparsityConfig(PrunerConfig):
    """Settings of a pruner that removes single weights of matrices."""

    sparsity: float = Field(default=0.5, ge=0, lt=1)
    """Share of the weights to remove."""
    pattern: Pattern | None = None
    """`2:4` keeps 2 of every 4 neighbouring inputs of each output, whatever `sparsity` says."""


def prunable(model: LanguageModel) -> dict[str, Tensor]:
    """Every weight matrix, by name, as rows and columns that share its memory; embeddings and heads are
    left alone.
    """
    roles = parameter_roles(model)
    return {
        name: parameter.data.view(-1, parameter.shape[-1])
        for name, parameter in model.named_parameters()
        if roles[name] is Role.MATRIX and parameter.ndim >= 2
    }


def pattern_of(text: str) -> tuple[int, int]:
    """Kept and group size of a pattern such as `2:4`."""
    kept, _, group = text.partition(":")
    return int(kept), int(group)


def count_of(share: float, total: int) -> int:
    """How many a share is, rounded down, however the share was computed."""
    return int(share * total + 1e-6)


def keep_highest(score: Tensor, removed: int) -> Tensor:
    """True except at the `removed` lowest scores; of equal scores the first are removed."""
    kept = torch.ones(score.numel(), dtype=torch.bool, device=score.device)
    kept[torch.argsort(score.flatten(), stable=True)[:removed]] = False
    return kept.view(score.shape)


def keep_in_rows(score_RC: Tensor, sparsity: float) -> Tensor:
    """In every row, True except at the lowest `int(sparsity * C)` scores; of equal scores the first are removed."""
    count = count_of(sparsity, score_RC.shape[1])
    if not count or not score_RC.numel():
        return torch.ones_like(score_RC, dtype=torch.bool)
    scores = score_RC.detach().cpu().numpy()
    limit_R1 = np.partition(scores, count - 1, axis=1)[:, count - 1 : count]
    removed_RC = scores <= limit_R1
    several_R = removed_RC.sum(axis=1) > count
    if several_R.any():
        below_RC, equal_RC = scores[several_R] < limit_R1[several_R], scores[several_R] == limit_R1[several_R]
        missing_R1 = count - below_RC.sum(axis=1, keepdims=True)
        removed_RC[several_R] = below_RC | (equal_RC & (equal_RC.cumsum(axis=1) <= missing_R1))
    return torch.from_numpy(~removed_RC).to(score_RC.device)


def keep_pattern(score_RC: Tensor, pattern: str) -> Tensor:
    """In every group of neighbouring inputs, True at the highest scores; a last, shorter group loses its
    share.
    """
    kept, group = pattern_of(pattern)
    rows, columns = score_RC.shape
    whole = columns - columns % group
    grouped = score_RC[:, :whole].reshape(-1, group)
    mask = keep_in_rows(grouped, (group - kept) / group).view(rows, whole)
    return torch.cat((mask, keep_in_rows(score_RC[:, whole:], (group - kept) / group)), dim=1)


def keep_by_score(
    scores: Mapping[str, Tensor], sparsity: float, scope: Scope, pattern: str | None = None
) -> dict[str, Tensor]:
    """Masks for all weights: the given share of each weight, of each row, or of all weights together is
    removed.
    """
    if pattern is not None:
        return {name: keep_pattern(score, pattern) for name, score in scores.items()}
    if scope == "row":
        return {name: keep_in_rows(score, sparsity) for name, score in scores.items()}
    if scope == "layer":
        return {name: keep_highest(score, count_of(sparsity, score.numel())) for name, score in scores.items()}
    joined = torch.cat([score.flatten() for score in scores.values()])
    kept = keep_highest(joined, count_of(sparsity, joined.numel()))
    pieces = kept.split([score.numel() for score in scores.values()])
    return {name: piece.view(scores[name].shape) for name, piece in zip(scores, pieces, strict=True)}


def apply(model: LanguageModel, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeroes what the masks remove; returns them in the shapes of their parameters."""
    weights = prunable(model)
    for name, kept_RC in masks.items():
        weights[name].mul_(kept_RC)
    named = dict(model.named_parameters())
    return {name: kept_RC.view(named[name].shape) for name, kept_RC in masks.items()}
