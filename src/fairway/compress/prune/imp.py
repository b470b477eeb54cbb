"""Prunes by magnitude in rounds while the model trains on.

After R rounds a share `sparsity` is gone. `geometric`: each round removes the same share of what is left,
`(1 - p)^R = 1 - sparsity` (Han et al. 2015). `cubic`: `s_t = sparsity (1 - (1 - t)^3)`, t from `start` to
`end` of the run (Zhu & Gupta 2017). Masks only shrink, and optimizers keep removed weights at zero.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fairway.compress.masks import Scope, keep_by_score, prunable
from fairway.compress.parts import Pruner, PrunerConfig
from fairway.compress.topology import Masked, Settle, impose
from fairway.core.config import Source
from fairway.train.parts import Hook, Trainee

SOURCE = Source("Han et al.", 2015, "arXiv:1506.02626")


class Config(PrunerConfig):
    """Settings of iterative magnitude pruning."""

    sparsity: float = Field(default=0.5, gt=0, lt=1)
    """Share of the weights that is gone in the end."""
    rounds: int = Field(default=10, ge=1)
    """Times that weights are removed."""
    start: float = Field(default=0.2, ge=0, lt=1)
    """Progress of the first round."""
    end: float = Field(default=0.7, gt=0, le=1)
    """Progress of the last round."""
    schedule: Literal["geometric", "cubic"] = "geometric"
    """How the share grows over the rounds."""
    scope: Scope = "layer"
    """Compare the weights of one row, of one layer, or of the whole model."""

    @model_validator(mode="after")
    def _ends_after_it_starts(self) -> "Config":
        if self.end <= self.start:
            raise ValueError(f"end is {self.end}, before start at {self.start}")
        return self

    def build(self) -> Pruner:
        return Settle(lambda sizes: keep_by_score(sizes, self.sparsity, self.scope))

    def hooks(self, seed: int) -> list[Hook]:  # noqa: ARG002
        return [Iterative(self)]

    def sparsity_at(self, progress: float) -> float:
        """Share removed by the rounds up to here."""
        if progress < self.start:
            return 0.0
        span = (progress - self.start) / (self.end - self.start)
        done = min(self.rounds, 1 + math.floor(span * max(1, self.rounds - 1) + 1e-9)) / self.rounds
        if self.schedule == "geometric":
            return 1 - (1 - self.sparsity) ** done
        return self.sparsity * (1 - (1 - done) ** 3)


class Iterative(Masked):
    """Removes more at each round."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def stepped(self, loop: Trainee) -> dict[str, float]:
        target = self.config.sparsity_at(loop.progress)
        if target > 0 and (not self.masks or 1 - self.density()["density"] < target - 1e-3):
            self.prune(loop, target)
        return self.density() if self.masks else {}

    def prune(self, loop: Trainee, target: float) -> None:
        """Masks that keep the largest of the weights still there."""
        named = dict(loop.model.named_parameters())
        rows = prunable(loop.model)
        scores = {name: weight_RC.abs() for name, weight_RC in rows.items()}
        for name, mask in self.masks.items():
            scores[name] = torch.where(mask.view(scores[name].shape) > 0, scores[name], -1.0)
        kept = keep_by_score(scores, target, self.config.scope)
        self.masks = {name: self._shrunk(name, mask.view(named[name].shape)) for name, mask in kept.items()}
        impose(loop, self.masks)

    def _shrunk(self, name: str, mask: Tensor) -> Tensor:
        old = self.masks.get(name)
        return mask.float() if old is None else mask.float() * old
