"""Removes whole neurons, heads, channels, experts, features or blocks, and builds the smaller model.

Neuron j of a hidden layer scores `||W_out[:, j]|| sqrt(sum h_j^2)`, what it adds to the output on calibration text; a
gated pair counts as one neuron. So do Mamba's inner channels, and features of the residual stream for the maps that
read it; heads (with their key group) score the mean absolute gradient at their gate, experts the share of tokens that
choose them. The same number goes from every layer, and the output map of those that stay is refitted to the outputs
before: `W' = W H[:, S] H[S, S]^-1`, H the second moments of the hidden values. Blocks are removed one by one, each time
the one without which the loss on the text is least. Li et al. 2017 (whole filters); Ma et al. 2023 (coupled structures
of language models). Shape key: R outputs, F hidden width, S neurons that stay.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.compress.curvature import mean_loss
from fairway.compress.parts import Pruned, Pruner, PrunerConfig
from fairway.compress.smaller import (
    Chosen,
    Refit,
    best,
    rebuilt,
    without_channels,
    without_experts,
    without_features,
    without_heads,
)
from fairway.core.config import Source
from fairway.core.errors import ConfigError
from fairway.core.log import Event, Listener, silent
from fairway.model.depth.plain import Plain
from fairway.model.ffn.gated import Gated
from fairway.model.ffn.ungated import Ungated
from fairway.model.lm import LanguageModel, ModelConfig

SOURCE = Source("Li et al.", 2017, "arXiv:1608.08710")


class Config(PrunerConfig):
    """Settings of structured pruning."""

    sparsity: float = Field(default=0.25, ge=0, lt=1)
    """Share of the units to remove."""
    unit: Literal["neurons", "heads", "channels", "experts", "width", "blocks"] = "neurons"
    """What is removed: hidden neurons, attention heads with their key groups, Mamba's inner channels, experts, features
    of the residual stream, or whole blocks.
    """
    refit: bool = True
    """Fit the output maps of the neurons, heads or channels that stay to the outputs before."""
    damping: float = Field(default=0.01, gt=0)
    """Share of the mean second moment that is added to all, for the refit."""

    def build(self) -> Pruner:
        return Structured(self)


class Structured(Pruner):
    """Needs calibration text; returns a smaller model."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:
        if not calibration:
            raise ConfigError(
                "Structured pruning weighs neurons by what they do on text, but no calibration text was given to it."
            )
        share, damping = self.config.sparsity, self.config.damping if self.config.refit else None
        if self.config.unit == "heads":
            return Pruned(without_heads(model, share, calibration, damping))
        with torch.no_grad():
            match self.config.unit:
                case "blocks":
                    return Pruned(without_blocks(model, share, calibration, listener))
                case "channels":
                    return Pruned(without_channels(model, share, calibration, damping))
                case "experts":
                    return Pruned(without_experts(model, share, calibration))
                case "width":
                    return Pruned(without_features(model, share, calibration))
                case _:
                    return Pruned(without_neurons(model, share, calibration, damping))


def without_neurons(
    model: LanguageModel, share: float, calibration: Sequence[Tensor], damping: float | None
) -> LanguageModel:
    """Every feed-forward without that share of its neurons."""
    layers = feed_forwards(model)
    widths = {layer.output.weight.shape[1] for layer in layers.values()}
    if len(widths) != 1:
        raise ConfigError("Neurons can be removed only where all layers have feed-forwards of one hidden width.")
    hidden = widths.pop()
    stay = smaller_width(model.config, hidden, share)
    refit, chosen = Refit(model, calibration, damping), Chosen()
    for name, layer in layers.items():
        score_F = layer.output.weight.double().norm(dim=0) * refit.gram(layer.output).diagonal().sqrt()
        stay_S = best(score_F, stay)
        chosen[f"{name}."] = {hidden: stay_S, 2 * hidden: torch.cat((stay_S, stay_S + hidden))}
        refit.add(layer.output, stay_S)
    return rebuilt(model, resized(model.config, stay), chosen, refit.weights)


def feed_forwards(model: LanguageModel) -> dict[str, Gated | Ungated]:
    """Every plain feed-forward by name; raises `ConfigError` where there is none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, (Gated, Ungated))}
    if not found:
        raise ConfigError(
            f"model.ffn.kind={model.config.ffn.kind} has no neurons that this can remove; relu2 or swiglu would work."
        )
    return found


def smaller_width(config: ModelConfig, hidden: int, sparsity: float) -> int:
    """Hidden neurons that stay: the wanted share, rounded to what the feed-forward's settings can express."""
    wanted = (1 - sparsity) * hidden
    gated = "ratio" in type(config.ffn).model_fields and _hidden(config, 1.0) % 8 == 0 and hidden % 8 == 0
    return min(hidden, max(8, 8 * round(wanted / 8))) if gated else max(1, round(wanted))


def resized(config: ModelConfig, hidden: int) -> ModelConfig:
    """The settings of a model whose feed-forwards have `hidden` neurons."""
    for factor in (1.0, 1.5):
        ratio = factor * hidden / config.width
        if _hidden(config, ratio) == hidden:
            return _with_ratio(config, ratio)
    raise ConfigError(f"No ratio of this feed-forward gives {hidden} neurons.")


def without_blocks(
    model: LanguageModel, sparsity: float, calibration: Sequence[Tensor], listener: Listener = silent
) -> LanguageModel:
    """The model without that share of its blocks (rounded; at least one stays)."""
    if not isinstance(model.depth, Plain):
        raise ConfigError(
            f"model.depth.kind={model.config.depth.kind} shares or joins blocks; only plain ones can be removed."
        )
    if len(model.config.mixer) > 1:
        raise ConfigError("Blocks of a model with several mixers cannot be removed: their order would change.")
    blocks = list(model.depth.blocks)
    target = max(1, round((1 - sparsity) * len(blocks)))
    total = len(blocks) - target
    while len(blocks) > target:
        losses = []
        for index in range(len(blocks)):
            model.depth.blocks = nn.ModuleList(blocks[:index] + blocks[index + 1 :])
            losses.append(float(mean_loss(model, calibration)))
        blocks.pop(min(range(len(blocks)), key=losses.__getitem__))
        listener(Event("prune", 1 - (len(blocks) - target) / total, {"loss": min(losses)}))
    model.depth.blocks = nn.ModuleList(blocks)
    data: dict[str, Any] = copy.deepcopy(model.config.plain())
    data["depth"]["layers"] = target
    smaller = ModelConfig.read(data).skeleton(model.vocabulary).to_empty(device="cpu")
    smaller.load_state_dict({name: value.detach() for name, value in model.named_parameters()})
    return smaller


def _with_ratio(config: ModelConfig, ratio: float) -> ModelConfig:
    data = config.plain()
    data["ffn"]["ratio"] = ratio
    return ModelConfig.read(data)


def _hidden(config: ModelConfig, ratio: float) -> int:
    with torch.device("meta"):
        layer = _with_ratio(config, ratio).ffn.build(config.width)
    return layer.output.weight.shape[1] if isinstance(layer, (Gated, Ungated)) else -1
