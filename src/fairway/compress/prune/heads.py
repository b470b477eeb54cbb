"""Removes whole attention heads by the gradient of the loss at a gate on each.

`I_h = E|dL / dxi_h|` at gates xi = 1 on the heads' outputs before the output map, one gradient per
sequence, the absolute value inside the mean; importances are divided by their Euclidean norm in each layer.
A removed head loses its columns of the output map, its rows of the query map, and, once all heads of its
group are gone, the group's rows of the key and value maps. Michel et al. 2019. Shape key: H heads, K head
width, D width.
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.compress.curvature import sequence_losses
from fairway.compress.masks import apply, count_of, keep_highest
from fairway.compress.parts import Pruned, Pruner, PrunerConfig
from fairway.core.config import Source
from fairway.core.errors import ConfigError
from fairway.core.log import Listener, silent
from fairway.model.lm import LanguageModel
from fairway.model.mixer.attention import Attention

SOURCE = Source("Michel et al.", 2019, "arXiv:1905.10650")


class Config(PrunerConfig):
    """Settings of head pruning."""

    sparsity: float = Field(default=0.25, ge=0, lt=1)
    """Share of all heads to remove."""

    def build(self) -> Pruner:
        return Heads(self)


class Heads(Pruner):
    """Needs calibration text."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:  # noqa: ARG002
        layers = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
        if not layers:
            raise ConfigError("This model has no attention heads; model.mixer.kind=attention has.")
        if not calibration:
            raise ConfigError("Head pruning needs gradients on text, but no calibration text was given to it.")
        scores = importance(model, layers, calibration)
        joined = torch.cat([score_H / score_H.norm().clamp_min(1e-30) for score_H in scores.values()])
        kept = keep_highest(joined, count_of(self.config.sparsity, len(joined)))
        pieces = kept.split([len(score_H) for score_H in scores.values()])
        masks: dict[str, Tensor] = {}
        for (name, layer), kept_H in zip(layers.items(), pieces, strict=True):
            masks |= masks_of(name, layer, kept_H)
        return Pruned(model, apply(model, masks))


def importance(model: LanguageModel, layers: dict[str, Attention], calibration: Sequence[Tensor]) -> dict[str, Tensor]:
    """`E|dL / dxi_h|` for every head of every layer."""
    model.eval()
    gates = {name: torch.ones(layer.config.heads, requires_grad=True) for name, layer in layers.items()}
    handles = [layer.output.register_forward_pre_hook(_gate(gates[name])) for name, layer in layers.items()]
    total = {name: torch.zeros_like(gate) for name, gate in gates.items()}
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


def masks_of(name: str, layer: Attention, kept_H: Tensor) -> dict[str, Tensor]:
    """Which weights of an attention layer stay if only some heads do."""
    kept_D = kept_H.repeat_interleave(layer.head_width)
    group_G = kept_H.view(layer.groups, -1).any(dim=1).repeat_interleave(layer.head_width)
    return {
        f"{name}.query.weight": kept_D[:, None].expand(layer.query.weight.shape),
        f"{name}.key.weight": group_G[:, None].expand(layer.key.weight.shape),
        f"{name}.value.weight": group_G[:, None].expand(layer.value.weight.shape),
        f"{name}.output.weight": kept_D[None, :].expand(layer.output.weight.shape),
    }


def _gate(gate_H: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x_BTHK = inputs[0].unflatten(-1, (len(gate_H), -1))
        return ((x_BTHK * gate_H[:, None]).flatten(-2), *inputs[1:])

    return hook
