"""Removes whole hidden neurons of feed-forwards, or whole blocks, and builds the smaller model.

Neuron j of a hidden layer scores `||W_out[:, j]|| sqrt(sum h_j^2)`, what it adds to the output on
calibration text; a gated pair counts as one neuron. The same number goes from every layer, and the output
map of those that stay is refitted to the outputs before: `W' = W H[:, S] H[S, S]^-1`, H the second moments
of the hidden values. Blocks are removed one by one, each time the one without which the loss on the text is
least. Li et al. 2017 (whole filters); Ma et al. 2023 (coupled structures of language models). Shape key: R
outputs, F hidden width, S neurons that stay.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.compress.calibrate import gather, linear_weights
from fairway.compress.curvature import mean_loss
from fairway.compress.parts import Pruned, Pruner, PrunerConfig
from fairway.compress.solve import damped
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
    """Share of the neurons, or of the blocks, to remove."""
    unit: Literal["neurons", "blocks"] = "neurons"
    """What is removed."""
    refit: bool = True
    """Fit the output maps of the neurons that stay to the outputs before."""
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
        with torch.no_grad():
            if self.config.unit == "blocks":
                return Pruned(without_blocks(model, self.config.sparsity, calibration, listener))
            return Pruned(self._without_neurons(model, calibration))

    def _without_neurons(self, model: LanguageModel, calibration: Sequence[Tensor]) -> LanguageModel:
        layers = feed_forwards(model)
        hidden = {layer.output.weight.shape[1] for layer in layers.values()}
        if len(hidden) != 1:
            raise ConfigError("Neurons can be removed only where all layers have feed-forwards of one hidden width.")
        stay = smaller_width(model.config, hidden.pop(), self.config.sparsity)
        statistics, names = gather(model, calibration), linear_weights(model)
        smaller = resized(model.config, stay).skeleton(model.vocabulary).to_empty(device="cpu")
        state = dict(model.named_parameters())
        for name, layer in layers.items():
            found = statistics.get(names[layer.output])
            gram_FF = found.gram_CC if found is not None else torch.eye(layer.output.weight.shape[1]).double()
            score_F = layer.output.weight.double().norm(dim=0) * gram_FF.diagonal().sqrt()
            chosen_S = score_F.topk(stay).indices.sort().values
            state |= cut(name, layer, chosen_S, damped(gram_FF, self.config.damping) if self.config.refit else None)
        smaller.load_state_dict({name: state[name].detach() for name, _ in smaller.named_parameters()})
        return smaller


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


def cut(name: str, layer: Gated | Ungated, chosen_S: Tensor, gram_FF: Tensor | None) -> dict[str, Tensor]:
    """The weights of a feed-forward with only the chosen neurons."""
    hidden = layer.output.weight.shape[1]
    rows = torch.cat((chosen_S, chosen_S + hidden)) if isinstance(layer, Gated) else chosen_S
    output_RF = layer.output.weight.double()
    output_RS = output_RF[:, chosen_S]
    if gram_FF is not None:
        output_RS = torch.linalg.solve(gram_FF[chosen_S][:, chosen_S], gram_FF[chosen_S] @ output_RF.T).T
    return {f"{name}.input.weight": layer.input.weight[rows], f"{name}.output.weight": output_RS.float()}


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
