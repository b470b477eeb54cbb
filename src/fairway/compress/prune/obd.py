"""Removes the weights whose removal should raise the loss least, by a diagonal Hessian.

`saliency = 1/2 H_qq w_q^2`. H_qq: `fisher` (squared gradients of each sequence's loss), `gauss_newton` (the
same with labels drawn from the model, per sequence), or `hutchinson` (random probes of the exact Hessian;
negative curvature counts as zero). With `linear` the first-order term `-g_q w_q` is added. LeCun et al.
1990. Shape key: R rows, C columns.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.compress.curvature import fisher_diagonal, hutchinson_diagonal, mean_loss, sequence_losses
from fairway.compress.masks import Scope, SparsityConfig, apply, keep_by_score, prunable
from fairway.compress.parts import Pruned, Pruner
from fairway.core.config import Source
from fairway.core.errors import ConfigError
from fairway.core.log import Listener, silent
from fairway.model.lm import LanguageModel

SOURCE = Source("LeCun et al.", 1990, "NeurIPS 2:598-605")


class Config(SparsityConfig):
    """Settings of optimal brain damage."""

    scope: Scope = "global"
    """Compare saliencies inside a row, a layer, or over the whole model."""
    curvature: Literal["fisher", "gauss_newton", "hutchinson"] = "fisher"
    """How the diagonal is estimated."""
    probes: int = Field(default=8, ge=1)
    """Random vectors of `hutchinson`."""
    linear: bool = False
    """Add the first-order term."""
    seed: int = 0
    """Of labels and probes."""

    def build(self) -> Pruner:
        return BrainDamage(self)


class BrainDamage(Pruner):
    """Needs calibration text."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:  # noqa: ARG002
        if not calibration:
            raise ConfigError("OBD measures curvature on text, but no calibration text was given to it.")
        model.requires_grad_(True).eval()
        named = dict(model.named_parameters())
        parameters = {name: named[name] for name in prunable(model)}
        scores = {
            name: 0.5 * diagonal * parameters[name].detach().square()
            for name, diagonal in self.diagonal(model, calibration, parameters).items()
        }
        if self.config.linear:
            gradients = torch.autograd.grad(mean_loss(model, calibration), list(parameters.values()))
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                scores[name] -= gradient * parameter.detach()
        rows = {name: score.reshape(-1, score.shape[-1]) for name, score in scores.items()}
        masks = keep_by_score(rows, self.config.sparsity, self.config.scope, self.config.pattern)
        return Pruned(model, apply(model, masks))

    def diagonal(
        self, model: LanguageModel, calibration: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """The estimated diagonal, never negative."""
        config = self.config
        if config.curvature == "hutchinson":
            found = hutchinson_diagonal(
                lambda: mean_loss(model, calibration), parameters, config.probes, config.seed, 0.01
            )
            return {name: value.clamp_min(0) for name, value in found.items()}
        sampled = config.curvature == "gauss_newton"
        return fisher_diagonal(sequence_losses(model, calibration, sampled=sampled, seed=config.seed), parameters)
