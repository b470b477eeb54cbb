"""Removes the weights that a first-order expansion says matter least.

`taylor`: `score = E|g w|`, the absolute value inside the mean over sequences (Molchanov et al. 2017). Shape
key: R rows, C columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairway.compress.curvature import sequence_losses
from fairway.compress.masks import Scope, SparsityConfig, apply, keep_by_score, prunable
from fairway.compress.parts import Pruned, Pruner
from fairway.core.config import Source
from fairway.core.errors import ConfigError
from fairway.core.log import Listener, silent
from fairway.model.lm import LanguageModel

SOURCE = Source("Molchanov et al.", 2017, "arXiv:1611.06440")


class Config(SparsityConfig):
    """Settings of first-order pruning."""

    scope: Scope = "global"
    """Compare scores inside a row, a layer, or over the whole model."""

    def build(self) -> Pruner:
        return Taylor(self)


class Taylor(Pruner):
    """Needs calibration text."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:  # noqa: ARG002
        if not calibration:
            raise ConfigError("First-order pruning needs gradients on text, but no calibration text was given to it.")
        model.requires_grad_(True).eval()
        named = dict(model.named_parameters())
        parameters = {name: named[name] for name in prunable(model)}
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for loss in sequence_losses(model, calibration, sampled=False):
            gradients = torch.autograd.grad(
                loss(), list(parameters.values()), materialize_grads=True, allow_unused=True
            )
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                total[name] += (gradient * parameter.detach()).abs()
        rows = {name: score.reshape(-1, score.shape[-1]) for name, score in total.items()}
        masks = keep_by_score(rows, self.config.sparsity, self.config.scope, self.config.pattern)
        return Pruned(model, apply(model, masks))
