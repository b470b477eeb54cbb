"""Removes the weights of least magnitude.

`score = |w|`; the lowest share of each layer, each row or the whole model goes, or all but n of every m
inputs. With `random` the scores are random numbers instead: the control that any saliency must beat. Han et
al. 2015. Shape key: R rows, C columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairway.compress.masks import Scope, SparsityConfig, apply, keep_by_score, prunable
from fairway.compress.parts import Pruned, Pruner
from fairway.core.config import Source
from fairway.core.log import Listener, silent
from fairway.core.seed import generator
from fairway.model.lm import LanguageModel

SOURCE = Source("Han et al.", 2015, "arXiv:1506.02626")


class Config(SparsityConfig):
    """Settings of magnitude pruning."""

    scope: Scope = "layer"
    """Compare the weights of one layer, of one row, or of the whole model."""
    random: bool = False
    """Remove weights at random instead."""
    seed: int = 0
    """Of the random choice."""

    def build(self) -> Pruner:
        return Magnitude(self)


class Magnitude(Pruner):
    """Needs no text."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:  # noqa: ARG002
        config = self.config
        scores = {name: self._score(name, weight_RC) for name, weight_RC in prunable(model).items()}
        masks = keep_by_score(scores, config.sparsity, config.scope, config.pattern)
        return Pruned(model, apply(model, masks))

    def _score(self, name: str, weight_RC: Tensor) -> Tensor:
        if self.config.random:
            return torch.rand(weight_RC.shape, generator=generator(self.config.seed, "prune", name))
        return weight_RC.abs()
