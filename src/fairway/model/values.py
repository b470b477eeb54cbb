"""Values that travel with a forward: roles of parameters, auxiliary losses and statistics, and what parts may look at.

Shape key: B batch, T time, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Protocol, Self

import torch
from torch import Tensor


class Role(StrEnum):
    """What a parameter is for; decides its optimizer group, its muP rule and how it may be compressed."""

    EMBEDDING = "embedding"
    HEAD = "head"
    MATRIX = "matrix"
    VECTOR = "vector"
    SCALAR = "scalar"
    ROUTER = "router"
    DECAY = "decay"


@dataclass(frozen=True)
class Aux:
    """What a forward returns beside its output: losses to add (already weighted) and detached statistics, by name."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)

    def under(self, name: str) -> "Aux":
        """The same values with every name prefixed by `name.`."""
        return Aux(
            {f"{name}.{key}": value for key, value in self.losses.items()},
            {f"{name}.{key}": value for key, value in self.statistics.items()},
        )

    def __add__(self, other: "Aux") -> "Aux":
        """Both together; their names must differ."""
        return Aux(self.losses | other.losses, self.statistics | other.statistics)

    @staticmethod
    def of_repeats(repeats: Sequence["Aux"]) -> "Aux":
        """Values of one module applied several times: losses summed, statistics averaged."""
        if len(repeats) == 1:
            return repeats[0]
        losses: dict[str, list[Tensor]] = {}
        statistics: dict[str, list[Tensor]] = {}
        for aux in repeats:
            for name, value in aux.losses.items():
                losses.setdefault(name, []).append(value)
            for name, value in aux.statistics.items():
                statistics.setdefault(name, []).append(value)
        return Aux(
            {name: torch.stack(values).sum(0) for name, values in losses.items()},
            {name: torch.stack(values).mean(0) for name, values in statistics.items()},
        )

    def loss(self) -> Tensor | float:
        """The sum of all losses; 0.0 where there is none."""
        return sum(self.losses.values(), start=0.0)


class Stretch(Protocol):
    """Consecutive blocks: runs those from `start` to `stop` and returns the output and each block's `Aux`."""

    def __call__(self, start: int, stop: int, x_BTD: Tensor) -> tuple[Tensor, list[Aux]]: ...


class Runner(Protocol):
    """A way of running `count` consecutive blocks: how they are grouped and what is kept for the backward pass."""

    def __call__(self, count: int, run: Stretch, x_BTD: Tensor) -> tuple[Tensor, list[Aux]]: ...


class BlockRunner(Protocol):
    """A way of running one block, such as a piece of the sequence at a time; it returns what the block returns."""

    def __call__(
        self,
        block: "Callable[[Tensor, tuple[Tensor, ...] | None, Context], tuple[Tensor, tuple[Tensor, ...], Aux]]",
        x_BTD: Tensor,
        state: tuple[Tensor, ...] | None,
        context: "Context",
    ) -> tuple[Tensor, tuple[Tensor, ...], Aux]: ...


@dataclass(frozen=True)
class Context:
    """What a forward may look at beside its input; values only, the same for every layer unless replaced."""

    tokens_BT: Tensor | None = None
    starts_BT: Tensor | None = None
    """True where a token begins a document: nothing before it may be seen from there on. None: one document."""
    embedded_BTD: Tensor | None = None
    """The embedded input of the first layer, for parts that inject it again."""
    value_BTD: Tensor | None = None
    """A value embedding that attention may add to its values."""
    positions_BT: Tensor | None = None
    """Where the tokens stood before some were left out; None: they follow one another."""
    progress: float = 1.0
    """Training progress in [0, 1] for features that switch on during training; 1 outside training."""
    runner: "Runner | None" = None
    """Runs consecutive blocks instead of a plain loop, as recomputation does; they then return no state."""
    block_runner: "BlockRunner | None" = None
    """Runs each block instead of a plain call."""
    first: int = 0
    """The first token whose output is wanted; a block leaves out those before it, and the state is as ever."""

    def with_(self, **changes: object) -> Self:
        """A copy with some fields replaced."""
        return replace(self, **changes)  # pyrefly: ignore[bad-argument-type]

    def pieces(self, length: int, count: int) -> list[Self]:
        """One context for each of `count` pieces of at most `length` tokens."""
        cut = {name: value.split(length, 1) for name, value in self._timed().items()}
        return [self.with_(**{name: values[index] for name, values in cut.items()}) for index in range(count)]

    def wanted(self) -> Self:
        """The context of the wanted tokens alone."""
        return self.with_(first=0, **{name: value[:, self.first :] for name, value in self._timed().items()})

    def _timed(self) -> dict[str, Tensor]:
        """The values that have one entry for each token."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
