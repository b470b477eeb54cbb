"""Maximal update parametrisation: learning rates tuned on a narrow model hold for a wide one.

With m the growth of a parameter's inputs from the base model, in the form that allows a tied head:

| | tables, gains, biases | hidden matrices | head | narrow outputs |
|---|---|---|---|---|
| initial deviation | as it is | as it is (1/sqrt(inputs)) | * sqrt(m) | / sqrt(m) |
| factor in the forward pass | 1 | 1 | 1/m | 1 |
| learning rate of Adam | * 1 | / m | * 1 | / m |
| of SGD | * m | * m_out / m | * m | / m |
| of Muon | (Adam) | sqrt(m_out / m) over the growth of its scale rule | (Adam) | the same as hidden |

Weight decay is multiplied by the inverse, so that `lr * weight_decay` stays. "Narrow outputs" are matrices and
routers whose inputs grow and whose outputs do not: the head's rule with its factor drawn into the weight. Attention
scores are divided by the head width instead of its root where the head width grows. Norms, vocabulary and
positions are finite; depth is not covered. Yang et al. 2022 (arXiv:2203.03466), Table 8.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fairway.core.errors import ConfigError
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.parts import MixerConfig, Role, parameter_roles
from fairway.optim.parts import Growth, OptimizerConfig, RateScale

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """What changes for one parameter."""

    deviation: float
    """Factor on its initial values."""
    lr: float
    """Factor on its learning rate."""


@dataclass(frozen=True)
class Parametrisation:
    """A model grown from a base, and what its optimizer must know."""

    config: ModelConfig
    """With the factors of the forward pass."""
    deviations: Mapping[str, float]
    """Factor on the initial values of each parameter."""
    scales: Mapping[str, RateScale]
    """Factors on the rates of each parameter, for `OptimizerConfig.build`."""

    def build(self, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> LanguageModel:
        """An initialised model."""
        model = self.config.build(vocabulary, seed, device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(self.deviations[name])
        return model


def parametrise(target: ModelConfig, base: ModelConfig, vocabulary: int, optimizer: OptimizerConfig) -> Parametrisation:
    """The target model such that it trains well at the rates that are best for the base model.

    Raises `ConfigError` where the two differ in more than sizes, or where a part has no place for its factor.
    """
    wide, narrow = target.skeleton(vocabulary), base.skeleton(vocabulary)
    shapes = {name: tuple(parameter.shape) for name, parameter in wide.named_parameters()}
    bases = {name: tuple(parameter.shape) for name, parameter in narrow.named_parameters()}
    odd = sorted(set(shapes) ^ set(bases))
    if odd:
        raise ConfigError(f"The model and its base differ in more than sizes: only one of them has {odd[0]}.")
    if target.input_scale() == "sqrt" and target.width != base.width:
        raise ConfigError("embedding.scale sqrt grows with the width, which muP forbids; none or learned would work.")
    roles = parameter_roles(wide)
    rules = {name: rule(roles[name], shape, bases[name], optimizer) for name, shape in shapes.items()}
    head = target.head.model_copy(update={"scale": target.head.scale * base.width / target.width})
    pairs = zip(target.mixer, base.mixer, strict=True)
    mixers = tuple(_scored(one, target.width, other, base.width) for one, other in pairs)
    return Parametrisation(
        target.model_copy(update={"head": head, "mixer": mixers}),
        {name: entry.deviation for name, entry in rules.items()},
        {name: RateScale(entry.lr, 1.0 / entry.lr) for name, entry in rules.items()},
    )


def rule(role: Role, shape: Shape, base: Shape, optimizer: OptimizerConfig) -> Rule:
    """The rule of one parameter of a role, from its shape and its shape in the base model."""
    if len(shape) != len(base):
        raise ConfigError(f"A parameter has shape {shape} here and {base} in the base model; muP needs equal ranks.")
    if role not in (Role.MATRIX, Role.ROUTER, Role.HEAD) or len(shape) < 2:
        grown = math.prod(shape) / math.prod(base)
        return Rule(1.0, optimizer.vector_rate(grown))
    growth = Growth(shape[-2], shape[-1], base[-2], base[-1])
    if role is Role.HEAD:
        return Rule(math.sqrt(growth.into), optimizer.vector_rate(growth.into))
    narrow = growth.out == 1.0 and growth.into != 1.0
    return Rule(1.0 / math.sqrt(growth.into) if narrow else 1.0, optimizer.matrix_rate(role, growth))


def _scored(mixer: MixerConfig, width: int, base: MixerConfig, base_width: int) -> MixerConfig:
    """The mixer with its scores divided by the head width instead of its root, as seen from the base."""
    heads, base_heads = getattr(mixer, "heads", None), getattr(base, "heads", None)
    if heads is None or base_heads is None or width * base_heads == base_width * heads:
        return mixer
    if getattr(mixer, "head_width", None) is not None:
        return mixer
    if "score_scale" not in type(mixer).model_fields:
        raise ConfigError(
            f"Heads of {mixer.kind} grow from {base_width // base_heads} to {width // heads} features, and it has no "
            f"factor on its scores; {width * base_heads // base_width} heads would keep them as they are."
        )
    root = math.sqrt(base_width * heads / (width * base_heads))
    return mixer.model_copy(update={"score_scale": mixer.model_dump()["score_scale"] * root})
