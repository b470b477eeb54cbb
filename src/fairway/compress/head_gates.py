"""Gates on attention heads: how much the loss feels each, and gates that learn to close.

Importance: `I_h = E|dL / dxi_h|` at gates xi = 1 on the heads' outputs before the output map, one gradient for each
sequence, the absolute value inside the mean (Michel et al. 2019, arXiv:1905.10650).

Hard concrete gates: `s = sigmoid((log u - log(1 - u) + log alpha) / beta)`, u uniform, `z = clip(s (zeta - gamma) +
gamma, 0, 1)`: z is exactly 0 or 1 with some probability, and differentiable between. `P(z != 0) = sigmoid(log alpha -
beta log(-gamma / zeta))`, which is not the mean of z, is what a penalty on open gates sums; in use `z =
clip(sigmoid(log alpha) (zeta - gamma) + gamma, 0, 1)` (Louizos et al. 2018, arXiv:1712.01312).

Shape key: B batch, T time, H heads, K head width.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fairway.compress.curvature import sequence_losses
from fairway.core.errors import ConfigError
from fairway.model.lm import LanguageModel
from fairway.model.mixer.attention import Attention

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def attention_layers(model: LanguageModel) -> dict[str, Attention]:
    """Every attention layer by its path; raises `ConfigError` where there is none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    if not layers:
        raise ConfigError("This model has no attention heads; model.mixer.kind=attention has.")
    return layers


def importance(
    model: LanguageModel, layers: Mapping[str, Attention], calibration: Sequence[Tensor]
) -> dict[str, Tensor]:
    """`E|dL / dxi_h|` (H) of every layer; raises `ConfigError` without text."""
    if not calibration:
        raise ConfigError("Head pruning needs gradients on text, but no calibration text was given to it.")
    model.eval()
    gates = {name: torch.ones(layer.config.heads, requires_grad=True) for name, layer in layers.items()}
    handles = [layer.output.register_forward_pre_hook(gate(lambda n=name: gates[n])) for name, layer in layers.items()]
    total = {name: torch.zeros_like(gate_H) for name, gate_H in gates.items()}
    losses = sequence_losses(model, calibration, sampled=False)
    try:
        for loss in losses:
            gradients = torch.autograd.grad(loss(), list(gates.values()))
            for name, gradient in zip(gates, gradients, strict=True):
                total[name] = total[name] + gradient.abs() / len(losses)
    finally:
        for handle in handles:
            handle.remove()
    return {name: value.detach() for name, value in total.items()}


def gate(of: Callable[[], Tensor | None]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A hook before an output map that multiplies each head by its gate (H), whatever that is at the time."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gate_H = of()
        if gate_H is None:
            return inputs
        x_BTHK = inputs[0].unflatten(-1, (len(gate_H), -1))
        return ((x_BTHK * gate_H[:, None].to(x_BTHK.dtype)).flatten(-2), *inputs[1:])

    return hook


def sampled(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Random gates from uniform numbers in (0, 1), differentiable by log alpha."""
    s = torch.sigmoid((uniform.log() - (1 - uniform).log() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_chance(log_alpha: Tensor) -> Tensor:
    """`P(z != 0)`."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def settled(log_alpha: Tensor) -> Tensor:
    """The gates in use, without chance."""
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
