"""How gradients and activations flow through a model: norms by layer, and units that are dead.

A unit is dead where it is exactly zero for every token of a batch: no gradient reaches the weights that read it.
Units are the inputs of linear maps, so a feed-forward's hidden units are seen where they enter its second map.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairway.data.batches import Batch
from fairway.model.linear import Linear
from fairway.model.parts import parameter_roles
from fairway.train.loop import Loop


@dataclass(frozen=True)
class Flow:
    """Of one parameter."""

    name: str
    role: str
    weight: float
    """Root mean square."""
    gradient: float
    """The same of its gradient."""
    ratio: float
    """Gradient over weight; 0 where the weight is zero."""


@dataclass(frozen=True)
class Units:
    """What enters one linear map."""

    name: str
    count: int
    size: float
    """Root mean square of the activations."""
    zeros: float
    """Share of activations that are exactly zero."""
    dead: float
    """Share of units that are zero for every token."""


@dataclass(frozen=True)
class Health:
    """A model on one batch."""

    loss: float
    gradient_norm: float
    flows: tuple[Flow, ...]
    units: tuple[Units, ...]

    def warnings(self) -> list[str]:
        """What deserves a look, in words."""
        quiet = [flow.name for flow in self.flows if flow.gradient == 0.0]
        dying = [f"{units.name} ({100 * units.dead:.0f} %)" for units in self.units if units.dead > 0.25]
        found = [f"No gradient reaches {', '.join(quiet[:6])}."] if quiet else []
        return found + ([f"Many dead units enter {', '.join(dying[:6])}."] if dying else [])


def examine(loop: Loop, batch: Batch, progress: float = 1.0) -> Health:
    """One forward and backward pass over a batch, without a step; gradients are dropped afterwards."""
    watch = _Watch(loop.model)
    loop.model.train()
    try:
        loss, norm, _ = loop.accumulate(batch, progress)
        flows = _flows(loop.model)
    finally:
        watch.remove()
        loop.layout.zero_gradients()
    return Health(loss, norm, flows, watch.units())


class _Watch:
    """Counts what enters every linear map, over all micro-batches."""

    def __init__(self, model: nn.Module) -> None:
        self.squares: dict[str, float] = {}
        self.zeros: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self.alive: dict[str, Tensor] = {}
        named = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear)]
        self.handles = [module.register_forward_pre_hook(self._seen(name)) for name, module in named]

    def _seen(self, name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            x_NI = inputs[0].detach().flatten(0, -2)
            alive_I = (x_NI != 0).any(0)
            self.alive[name] = alive_I | self.alive[name] if name in self.alive else alive_I
            self.squares[name] = self.squares.get(name, 0.0) + float(x_NI.square().sum(dtype=torch.float64))
            self.zeros[name] = self.zeros.get(name, 0.0) + float((x_NI == 0).sum())
            self.tokens[name] = self.tokens.get(name, 0) + len(x_NI)

        return note

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def units(self) -> tuple[Units, ...]:
        rows = []
        for name, alive_I in self.alive.items():
            values = self.tokens[name] * len(alive_I)
            size = (self.squares[name] / values) ** 0.5
            dead = 1.0 - float(alive_I.double().mean())
            rows.append(Units(name, len(alive_I), size, self.zeros[name] / values, dead))
        return tuple(rows)


def _flows(model: nn.Module) -> tuple[Flow, ...]:
    roles = parameter_roles(model)
    rows = []
    for name, parameter in model.named_parameters():
        weight = _size(parameter.detach())
        gradient = 0.0 if parameter.grad is None else _size(parameter.grad)
        rows.append(Flow(name, roles[name].value, weight, gradient, gradient / weight if weight else 0.0))
    return tuple(rows)


def _size(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())
