"""Sparse training: how dense each layer is, how a topology changes, and masks that a run keeps.

Densities: `uniform` (the first layer dense), `er` proportional to `(n_in + n_out) / (n_in n_out)`, `erk`
the same with kernel sizes added; what would exceed 1 is capped and shared out among the rest. Mocanu et al.
2018 (arXiv:1707.04780), Evci et al. 2020 (arXiv:1911.11134).
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from fairway.compress.masks import apply, keep_highest, prunable
from fairway.compress.parts import Pruned, Pruner
from fairway.core.log import Listener, silent
from fairway.core.seed import generator
from fairway.model.lm import LanguageModel
from fairway.train.parts import Hook, Trainee

Density = Literal["uniform", "er", "erk"]


def densities(shapes: Mapping[str, tuple[int, ...]], sparsity: float, rule: Density) -> dict[str, float]:
    """The density of every layer; together they keep the wanted share of all weights."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    names = list(shapes)
    budget = (1 - sparsity) * sum(sizes.values())
    if rule == "uniform":
        first, rest = names[0], names[1:]
        if not rest or budget <= sizes[first]:
            return dict.fromkeys(names, 1 - sparsity)
        return {first: 1.0} | dict.fromkeys(rest, (budget - sizes[first]) / sum(sizes[name] for name in rest))
    kernel = 2 if rule == "er" else None
    raw = {name: sum(shape[:kernel]) / math.prod(shape[:kernel]) for name, shape in shapes.items()}
    capped: set[str] = set()
    while True:
        free = [name for name in names if name not in capped]
        left = budget - sum(sizes[name] for name in capped)
        factor = left / sum(raw[name] * sizes[name] for name in free)
        over = [name for name in free if factor * raw[name] > 1]
        if not over:
            return {name: 1.0 if name in capped else factor * raw[name] for name in names}
        capped |= set(over)


def random_mask(shape: tuple[int, ...], density: float, random: torch.Generator) -> Tensor:
    """Exactly `round(density * size)` ones in random places."""
    size = math.prod(shape)
    mask = torch.zeros(size)
    mask[torch.randperm(size, generator=random)[: round(density * size)]] = 1.0
    return mask.view(shape)


def moved(weight: Tensor, mask: Tensor, growth: Tensor, count: int, *, regrow: bool = True) -> Tensor:
    """The mask after dropping the `count` active weights of least magnitude and growing as many of highest
    `growth` score.

    Whatever was not kept may grow, those just dropped included unless `regrow` is false. As many are active
    as before.
    """
    flat, active = weight.flatten(), mask.flatten() > 0
    count = min(count, int(active.sum()), int((~active).sum()) if not regrow else len(flat))
    size = torch.where(active, flat.abs(), torch.inf)
    dropped = torch.argsort(size, stable=True)[:count]
    kept = active.clone()
    kept[dropped] = False
    barred = kept.clone()
    if not regrow:
        barred[dropped] = True
    score = torch.where(barred, -torch.inf, growth.flatten())
    kept[torch.argsort(score, descending=True, stable=True)[:count]] = True
    return kept.to(mask.dtype).view(mask.shape)


def share_at(progress: float, start: float, end: float) -> float:
    """The cosine `1/2 start (1 + cos(pi progress / end))` of RigL; nothing moves after `end`."""
    return 0.0 if progress >= end else start / 2 * (1 + math.cos(math.pi * progress / end))


def impose(loop: Trainee, masks: Mapping[str, Tensor]) -> None:
    """Makes masks the optimizer's, so that removed weights stay zero whatever the update."""
    named = dict(loop.model.named_parameters())
    loop.optimizer.wear(masks)
    with torch.no_grad():
        for name, mask in masks.items():
            named[name].mul_(mask)


class Masked(Hook):
    """Keeps masks over a run and through its checkpoints."""

    def __init__(self) -> None:
        self.masks: dict[str, Tensor] = {}

    def start(self, loop: Trainee) -> None:
        device = next(loop.model.parameters()).device
        self.masks = {name: mask.to(device) for name, mask in (self.masks or self.first(loop)).items()}
        impose(loop, self.masks)

    def first(self, loop: Trainee) -> dict[str, Tensor]:  # noqa: ARG002
        """The masks before the first step."""
        return {}

    def state(self) -> dict[str, Tensor]:
        return dict(self.masks)

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.masks = dict(state)

    def density(self) -> dict[str, float]:
        """The share of active weights, for the log."""
        active = sum(float(mask.sum()) for mask in self.masks.values())
        return {"density": active / max(1, sum(mask.numel() for mask in self.masks.values()))}


class Settle(Pruner):
    """After sparse training: the weights that training left active stay, all others are exactly zero.

    Averaged weights keep traces of weights that were active once; `choose` says which stay, from the
    magnitudes of all.
    """

    def __init__(self, choose: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
        self.choose = choose

    def prune(self, model: LanguageModel, calibration: object, listener: Listener = silent) -> Pruned:  # noqa: ARG002
        sizes = {name: weight_RC.abs() for name, weight_RC in prunable(model).items()}
        masks = {name: kept_RC & (sizes[name] > 0) for name, kept_RC in self.choose(sizes).items()}
        return Pruned(model, apply(model, masks))


def settle_by_density(sparsity: float, rule: Density) -> Settle:
    """Keeps, in each layer, as many of the largest weights as its density allows."""

    def choose(sizes: dict[str, Tensor]) -> dict[str, Tensor]:
        shapes = {name: tuple(size.shape) for name, size in sizes.items()}
        wanted = densities(shapes, sparsity, rule)
        return {
            name: keep_highest(size, size.numel() - round(wanted[name] * size.numel())) for name, size in sizes.items()
        }

    return Settle(choose)


def seeded_masks(model: LanguageModel, sparsity: float, rule: Density, seed: int) -> dict[str, Tensor]:
    """Random masks of the layers' densities."""
    shapes = {name: tuple(weight_RC.shape) for name, weight_RC in prunable(model).items()}
    named = dict(model.named_parameters())
    return {
        name: random_mask(shapes[name], density, generator(seed, "mask", name)).view(named[name].shape)
        for name, density in densities(shapes, sparsity, rule).items()
    }
