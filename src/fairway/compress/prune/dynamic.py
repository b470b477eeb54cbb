"""Trains sparse from the start.

`static` keeps a random mask. `set` and `rigl` change it every `every` steps until `end` of the run: in each
layer `1/2 share (1 + cos(pi progress / end))` of the active weights, those of least magnitude, are dropped
and as many grown: at random for `set`, where the dense gradient of that step is largest for `rigl`, whose
change takes the place of the step's weight update. New weights start at zero without momentum; a weight
dropped and grown at once keeps its value. Mocanu et al. 2018, Evci et al. 2020.
"""

import torch
from pydantic import Field
from torch import Tensor

from fairway.compress.masks import prunable
from fairway.compress.parts import Pruner, PrunerConfig
from fairway.compress.topology import Density, Masked, impose, moved, seeded_masks, settle_by_density, share_at
from fairway.core.config import Source
from fairway.core.seed import generator
from fairway.train.parts import Hook, Trainee

KINDS = ("rigl", "set", "static")
SUMMARIES = {
    "rigl": "Sparse training that grows weights where the gradient is largest",
    "set": "Sparse training that grows weights at random",
    "static": "Sparse training with a random mask that never changes",
}
SOURCES = {
    "rigl": Source("Evci et al.", 2020, "arXiv:1911.11134"),
    "set": Source("Mocanu et al.", 2018, "arXiv:1707.04780"),
    "static": Source("Mocanu et al.", 2018, "arXiv:1707.04780"),
}


class Config(PrunerConfig):
    """Settings of sparse training."""

    sparsity: float = Field(default=0.8, gt=0, lt=1)
    """Share of the weights of all matrices that are zero at any time."""
    density: Density = "erk"
    """How the weights that stay are shared out among layers."""
    every: int = Field(default=100, ge=1)
    """Steps between changes of topology."""
    share: float = Field(default=0.3, gt=0, le=1)
    """Share of the active weights that the first change replaces."""
    end: float = Field(default=0.75, gt=0, le=1)
    """Progress after which the topology stays."""
    regrow: bool = True
    """Let weights grow that were dropped in the same change."""

    def build(self) -> Pruner:
        return settle_by_density(self.sparsity, self.density)

    def hooks(self, seed: int) -> list[Hook]:
        return [Dynamic(self, seed)]


class Dynamic(Masked):
    """Changes the masks as training goes on."""

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed

    def first(self, loop: Trainee) -> dict[str, Tensor]:
        return seeded_masks(loop.model, self.config.sparsity, self.config.density, self.seed)

    def gradients(self, loop: Trainee) -> bool:
        if self.config.kind != "rigl" or not self._due(loop):
            return False
        named = dict(loop.model.named_parameters())
        gradients = {name: named[name].grad for name in self.masks}
        self._change(loop, {name: g.abs() for name, g in gradients.items() if g is not None})
        return True

    def stepped(self, loop: Trainee) -> dict[str, float]:
        if self.config.kind == "set" and self._due(loop):
            random = {name: generator(self.seed, "grow", loop.step, name) for name in self.masks}
            drawn = {name: torch.rand(mask.shape, generator=random[name]) for name, mask in self.masks.items()}
            self._change(loop, {name: score.to(self.masks[name].device) for name, score in drawn.items()})
        return self.density()

    def _due(self, loop: Trainee) -> bool:
        return loop.step > 0 and loop.step % self.config.every == 0 and loop.progress < self.config.end

    def _change(self, loop: Trainee, growth: dict[str, Tensor]) -> None:
        share = share_at(loop.progress, self.config.share, self.config.end)
        named = dict(loop.model.named_parameters())
        assert set(self.masks) <= set(prunable(loop.model))
        for name, score in growth.items():
            mask = self.masks[name]
            count = int(share * float(mask.sum()))
            self.masks[name] = moved(named[name].detach(), mask, score, count, regrow=self.config.regrow)
        impose(loop, self.masks)
