"""The contracts of optimization: groups by role, update rules, the optimizer made of them, schedules.

An `Optimizer` is a list of groups, each with one `Rule`. A rule sees wide weights (float32, or float64 for
float64 parameters) and gradients of the same layout and changes the weights in place; the optimizer deals
with missing gradients, masks, half-precision storage and state. Every parameter is in exactly one group.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Config, Technique
from fairway.core.errors import CheckpointError
from fairway.model.parts import Role
from fairway.optim.rounding import Nearest, Rounding

State = dict[str, dict[str, Tensor]]
"""State of a rule: parameter name, then slot name, then tensor."""


@dataclass(frozen=True)
class RateScale:
    """Factors on the rates of one parameter, as muP prescribes them."""

    lr: float = 1.0
    weight_decay: float = 1.0


@dataclass(frozen=True)
class Growth:
    """The last two dimensions of a parameter, outputs and inputs, and those of the same one in a smaller model."""

    outputs: int
    inputs: int
    base_outputs: int
    base_inputs: int

    @property
    def out(self) -> float:
        """Growth of the outputs."""
        return self.outputs / self.base_outputs

    @property
    def into(self) -> float:
        """Growth of the inputs."""
        return self.inputs / self.base_inputs


@dataclass(frozen=True)
class Group:
    """Parameters that share a role and both rates."""

    name: str
    role: Role
    parameters: tuple[str, ...]
    lr: float
    """Learning rate before the schedule's factor."""
    weight_decay: float
    """Decoupled: each step multiplies by `1 - lr * weight_decay`."""


class Rule(ABC):
    """One update rule over the parameters of one group.

    `state` is complete from the start, so that its keys never depend on the steps taken. Slots named in
    `elementwise` have the shape of their parameter and are zero wherever a mask is.
    """

    elementwise: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.state: State = {}

    @abstractmethod
    def update(
        self,
        names: Sequence[str],
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        group: Group,
        lr: float,
        progress: float,
    ) -> None:
        """Changes `weights` in place by one step of rate `lr`; `gradients` must not be written to."""


class Optimizer:
    """Groups with their rules. Never writes to `p.grad`; skips parameters without a gradient.

    `masks` holds a tensor of zeros and ones for any parameter, by name: where it is zero the gradient is
    ignored, the weight is zero after every step, and the elementwise state stays zero. `rounding` decides how
    parameters stored in half precision take up an update computed in float32. `when_done` is called with each group as
    soon as its weights are new.
    """

    def __init__(self, model: nn.Module, rules: Sequence[tuple[Group, Rule]]) -> None:
        self._named = dict(model.named_parameters())
        self._rules = list(rules)
        self.masks: dict[str, Tensor] = {}
        self.rounding: Rounding = Nearest()
        self.when_done: Callable[[Group], None] | None = None
        grouped = [name for group, _ in self._rules for name in group.parameters]
        assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
        assert set(grouped) == set(self._named), f"in no group: {sorted(set(self._named) - set(grouped))}"

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter once, in the order of the groups."""
        return [self._named[name] for group, _ in self._rules for name in group.parameters]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by its name."""
        return dict(self._named)

    def groups(self) -> list[Group]:
        """The groups; together they hold every parameter once."""
        return [group for group, _ in self._rules]

    @torch.no_grad()
    def wear(self, masks: Mapping[str, Tensor]) -> None:
        """Takes on masks, those of other parameters staying; elementwise state is zero where they are at once."""
        self.masks.update(masks)
        for _, rule in self._rules:
            for name in rule.state.keys() & masks.keys():
                for slot in rule.elementwise:
                    if not rule.state[name][slot].is_meta:
                        rule.state[name][slot].mul_(masks[name])

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for parameter in self._named.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, scale: float, progress: float) -> None:
        """One update at `scale` times each group's learning rate; `progress` is in [0, 1]."""
        for group, rule in self._rules:
            names = [name for name in group.parameters if self._named[name].grad is not None]
            if names:
                self._step_group(group, rule, names, group.lr * scale, progress)
            if self.when_done is not None:
                self.when_done(group)
        self.rounding.advance()

    def _step_group(self, group: Group, rule: Rule, names: list[str], lr: float, progress: float) -> None:
        stored = [self._named[name].data for name in names]
        weights = [self.rounding.widen(name, data) for name, data in zip(names, stored, strict=True)]
        gradients = [self._gradient(name, weight) for name, weight in zip(names, weights, strict=True)]
        rule.update(names, weights, gradients, group, lr, progress)
        for name, data, weight in zip(names, stored, weights, strict=True):
            mask = self.masks.get(name)
            if mask is not None:
                weight.mul_(mask)
                for slot in rule.elementwise:
                    rule.state[name][slot].mul_(mask)
            if weight is not data:
                self.rounding.store(name, data, weight)

    def _gradient(self, name: str, weight: Tensor) -> Tensor:
        gradient = self._named[name].grad
        assert gradient is not None
        if gradient.dtype != weight.dtype or gradient.stride() != weight.stride():
            gradient = torch.empty_like(weight).copy_(gradient)
        mask = self.masks.get(name)
        return gradient if mask is None else gradient * mask

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as `parameter/slot` to tensor; the tensors are live, not copies."""
        flat = {
            f"{name}/{slot}": tensor
            for _, rule in self._rules
            for name, slots in rule.state.items()
            for slot, tensor in slots.items()
        }
        return flat | {f"rounding/{key}": tensor for key, tensor in self.rounding.state().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state of the same model and settings; raises `CheckpointError` if it does not fit."""
        own = self.state()
        if set(own) != set(state):
            odd = sorted(set(own) ^ set(state))
            raise CheckpointError(
                f"The optimizer's state does not fit: {len(odd)} entries differ, {odd[0]!r} first. "
                "Resume with the optimizer and model that wrote the checkpoint."
            )
        for key, tensor in own.items():
            if tensor.shape != state[key].shape or tensor.dtype != state[key].dtype:
                raise CheckpointError(
                    f"The optimizer's state {key!r} has shape {tuple(state[key].shape)} and type "
                    f"{state[key].dtype}; {tuple(tensor.shape)} and {tensor.dtype} are needed."
                )
        for key, tensor in own.items():
            tensor.copy_(state[key])

    def state_bytes(self) -> int:
        """Bytes of the whole state."""
        return sum(tensor.nbytes for tensor in self.state().values())


class Rates(Config):
    """Learning rates by role; what is not given takes the optimizer's `lr`."""

    embedding: float | None = Field(default=None, ge=0)
    """Tables of token vectors, the tied head included."""
    head: float | None = Field(default=None, ge=0)
    """An untied output table."""
    matrix: float | None = Field(default=None, ge=0)
    """Hidden matrices."""
    vector: float | None = Field(default=None, ge=0)
    """Gains, biases and other vectors."""
    scalar: float | None = Field(default=None, ge=0)
    router: float | None = Field(default=None, ge=0)
    """Choice of experts."""
    decay: float | None = Field(default=None, ge=0)
    """Time constants of recurrent layers."""

    def of(self, role: Role, default: float) -> float:
        """The rate of a role."""
        rate = getattr(self, role.value)
        return default if rate is None else rate


class OptimizerConfig(Technique):
    """Settings of an optimizer."""

    lr: float = Field(default=0.003, ge=0)
    """Learning rate at the schedule's peak."""
    rates: Rates = Rates()
    """Learning rates of single roles."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of matrices, heads and routers; vectors, scalars and time constants never decay."""
    decay_embedding: bool = False
    """Whether the embedding decays too."""

    def matrix_rate(self, role: Role, growth: Growth) -> float:  # noqa: ARG002
        """Factor on the learning rate of a matrix that has grown, so that a step changes its outputs as much.

        That of Adam and of sign-like updates unless overridden.
        """
        return 1.0 / growth.into

    def vector_rate(self, growth: float) -> float:  # noqa: ARG002
        """The same for tables, vectors and scaled heads, of which one dimension has grown by `growth`."""
        return 1.0

    def build(self, model: nn.Module, scales: Mapping[str, RateScale] | None = None) -> Optimizer:
        """An optimizer of every parameter of `model`; `scales` are muP's factors by parameter name."""
        raise NotImplementedError


class ScheduleConfig(Technique):
    """Settings of a learning-rate schedule: a pure function of progress."""

    def factor(self, progress: float) -> float:
        """Factor in [0, 1] on every learning rate at a progress in [0, 1]; progress outside is clamped."""
        raise NotImplementedError
