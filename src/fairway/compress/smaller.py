"""Models without some of their heads, channels, experts or features: really smaller ones, with settings that say so.

Every unit works alike: scores say which entries stay, settings say the new sizes, and whatever dimension of a parameter
came out smaller is cut to the entries that stay. Output maps behind heads and channels are refitted to the outputs
before, `W' = W H[:, S] H[S, S]^-1`, H the second moments of their inputs. Without the refit the smaller model computes
what the large one does with the rest at zero. Shape key: D width, E inner channels or experts, H heads, G key groups,
K head width, R outputs, F inputs of a map, S those that stay.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairway.compress.calibrate import gather, linear_weights
from fairway.compress.head_gates import attention_layers, importance
from fairway.compress.solve import damped
from fairway.core.errors import ConfigError
from fairway.model.depth.plain import Plain
from fairway.model.ffn.gated import Gated
from fairway.model.ffn.moe import MixtureOfExperts
from fairway.model.ffn.ungated import Ungated
from fairway.model.linear import Linear
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.mixer.attention import Attention
from fairway.model.mixer.mamba import Mamba
from fairway.model.norm.rms import RmsNorm

Chosen = dict[str, dict[int, Tensor]]
"""By the start of parameters' names: for a size that shrinks, the entries that stay."""


def without_heads(
    model: LanguageModel, share: float, calibration: Sequence[Tensor], damping: float | None
) -> LanguageModel:
    """Every attention layer without that share of its key groups and their heads (of its heads, where all share one
    group); those go whose gates the loss feels least."""
    layers = attention_layers(model)
    scores, refit = importance(model, layers, calibration), Refit(model, calibration, damping)
    chosen: Chosen = {}
    for name, layer in layers.items():
        units_UH = torch.arange(layer.config.heads).view(_units(layer), -1)
        score_U = scores[name][units_UH].sum(dim=1)
        stay_U = best(score_U, left(share, len(units_UH)))
        heads = units_UH[stay_U].flatten()
        groups = stay_U if layer.groups > 1 else torch.zeros(1, dtype=torch.long)
        features = _spread(heads, layer.head_width)
        sizes = {layer.groups * layer.head_width: _spread(groups, layer.head_width)}
        chosen[f"{name}."] = sizes | {layer.config.heads: heads, layer.config.heads * layer.head_width: features}
        refit.add(layer.output, features)
    config = _with_mixers(model.config, lambda mixer: _fewer_heads(mixer, model.config.width, share))
    return rebuilt(model, config, chosen, refit.weights)


def without_channels(
    model: LanguageModel, share: float, calibration: Sequence[Tensor], damping: float | None
) -> LanguageModel:
    """Every Mamba layer without that share of its inner channels; those go that add least to its output."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Mamba)}
    if not layers:
        raise ConfigError("This model has no Mamba channels; model.mixer.kind=mamba has.")
    refit, chosen = Refit(model, calibration, damping), {}
    for name, layer in layers.items():
        squares_E = refit.gram(layer.output).diagonal()
        score_E = layer.output.weight.double().norm(dim=0) * squares_E.sqrt()
        stay = best(score_E, left(share, layer.inner))
        chosen[f"{name}."] = {layer.inner: stay, 2 * layer.inner: torch.cat((stay, stay + layer.inner))}
        refit.add(layer.output, stay)

    def narrower(mixer: dict[str, Any]) -> dict[str, Any]:
        if mixer["kind"] != "mamba":
            return mixer
        return mixer | {"inner": left(share, mixer["inner"] or mixer["expansion"] * model.config.width)}

    return rebuilt(model, _with_mixers(model.config, narrower), chosen, refit.weights)


def without_experts(model: LanguageModel, share: float, calibration: Sequence[Tensor]) -> LanguageModel:
    """Every mixture without that share of the experts to choose from; those go that fewest tokens choose."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)}
    if not layers:
        raise ConfigError("This model has no experts; model.ffn.kind=moe has.")
    settings = next(iter(layers.values())).config
    stay = max(settings.chosen, left(share, settings.routed))
    while (stay + settings.shared) % settings.fine or stay % settings.groups:
        stay += 1
    loads = {name: torch.zeros(settings.routed, dtype=torch.float64) for name in layers}
    training = model.training
    model.eval()
    for tokens_BT in calibration:
        figures = model(tokens_BT).aux.statistics
        for name in layers:
            loads[name] += figures.get(f"{name}.load", torch.ones(())).cpu() * tokens_BT.numel()
    model.train(training)
    chosen: Chosen = {f"{name}.": {settings.routed: best(load_E, stay)} for name, load_E in loads.items()}
    data = model.config.plain()
    data["ffn"]["experts"] = (stay + settings.shared) // settings.fine
    return rebuilt(model, ModelConfig.read(data), chosen)


def without_features(model: LanguageModel, share: float, calibration: Sequence[Tensor]) -> LanguageModel:
    """The model with that share less of its width (whole eights stay); features go that add least to what maps put
    out, each map counting the same.

    RMS norms measure over fewer features then, so their gains shrink by `sqrt(D' / D)`, and epsilon grows: features
    that stay come out of each norm as they would beside zeros.
    """
    _require_narrowable(model)
    old = model.config.width
    stay = min(old, max(8, 8 * round((1 - share) * old / 8)))
    score_D = torch.zeros(old, dtype=torch.float64)
    statistics = gather(model, calibration)
    for module, name in linear_weights(model).items():
        if name in statistics and module.weight.shape[1] == old and not name.endswith("output.weight"):
            part_D = module.weight.double().square().sum(dim=0) * statistics[name].squares_C
            score_D += part_D / part_D.sum().clamp_min(1e-30)
    smaller = rebuilt(model, _narrowed(model.config, stay), {"": {old: best(score_D, stay)}})
    for module in smaller.modules():
        if isinstance(module, RmsNorm) and module.width == stay and module.gain is not None:
            offset = 1.0 if module.unit_offset else 0.0
            module.gain.data = (module.gain.data + offset) * (old / stay) ** 0.5 - offset
    return smaller


def rebuilt(
    model: LanguageModel, config: ModelConfig, chosen: Chosen, instead: Mapping[str, Tensor] | None = None
) -> LanguageModel:
    """A model of the given settings from the entries that stay; `instead`: weights that replace their old ones."""
    smaller = config.skeleton(model.vocabulary).to_empty(device="cpu").to(next(model.parameters()).dtype)
    old, state = dict(model.named_parameters()), {}
    for name, target in smaller.named_parameters():
        value = (instead or {}).get(name, old[name]).detach()
        rules = [rule for start, rule in chosen.items() if name.startswith(start)]
        for dim, (had, wanted) in enumerate(zip(value.shape, target.shape, strict=True)):
            if had != wanted:
                kept = next((rule[had] for rule in rules if had in rule), None)
                if kept is None or len(kept) != wanted:
                    raise ConfigError(f"{name} cannot be cut from {tuple(value.shape)} to {tuple(target.shape)}.")
                value = value.index_select(dim, kept)
        state[name] = value
    smaller.load_state_dict(state)
    return smaller


class Refit:
    """Output maps fitted again to what they put out on calibration text."""

    def __init__(self, model: LanguageModel, calibration: Sequence[Tensor], damping: float | None) -> None:
        self.damping = damping
        self.weights: dict[str, Tensor] = {}
        self._names = linear_weights(model)
        self._found = gather(model, calibration)

    def gram(self, layer: Linear) -> Tensor:
        """Second moments of a map's inputs; of unit size where no text reached it."""
        found = self._found.get(self._names[layer])
        return found.gram_CC if found is not None else torch.eye(layer.weight.shape[1], dtype=torch.float64)

    def add(self, layer: Linear, stay_S: Tensor) -> None:
        """Fits one map to the inputs that stay, or only cuts it where there is no damping."""
        weight_RF = layer.weight.detach()
        weight_RS = weight_RF[:, stay_S]
        if self.damping is not None:
            weight_RS = refitted(weight_RF, damped(self.gram(layer), self.damping), stay_S)
        self.weights[self._names[layer]] = weight_RS


def refitted(weight_RF: Tensor, gram_FF: Tensor, stay_S: Tensor) -> Tensor:
    """`W H[:, S] H[S, S]^-1`: the map of fewer inputs that errs least."""
    moments_SF = gram_FF[stay_S]
    return torch.linalg.solve(moments_SF[:, stay_S], moments_SF @ weight_RF.double().T).T.to(weight_RF.dtype)


def _require_narrowable(model: LanguageModel) -> None:
    config = model.config
    mixers = all(isinstance(block.mixer, (Attention, Mamba)) for block in _blocks(model))
    ffns = all(isinstance(block.ffn, (Gated, Ungated, MixtureOfExperts)) for block in _blocks(model))
    norm = config.norm.plain()
    measured = norm["kind"] in ("dyt", "derf") or (norm["kind"] == "rms" and norm["gain"] and norm["fraction"] == 1.0)
    if not (mixers and ffns and measured) or model.position is not None or config.input_scale() == "sqrt":
        raise ConfigError(
            "The width of this model cannot be cut; it could with plain blocks of attention or mamba and relu2, swiglu "
            "or moe, norms rms with gains, dyt or derf, positions told to heads, and no fixed scale of the embedding."
        )


def _blocks(model: LanguageModel) -> list[Any]:
    if not isinstance(model.depth, Plain):
        raise ConfigError(
            f"model.depth.kind={model.config.depth.kind} shares or joins blocks; the width can be cut of plain ones."
        )
    return list(model.depth.blocks)


def _narrowed(config: ModelConfig, stay: int) -> ModelConfig:
    """The same heads, channels and hidden widths on a narrower stream."""
    old = config.width

    def fixed(mixer: dict[str, Any]) -> dict[str, Any]:
        if mixer["kind"] == "mamba":
            return mixer | {"inner": mixer["inner"] or mixer["expansion"] * old, "rank": mixer["rank"] or -(-old // 16)}
        return mixer | {"head_width": mixer["head_width"] or old // mixer["heads"]}

    data = _with_mixers(config, fixed).plain()
    data["ffn"]["ratio"] *= old / stay
    if data["norm"]["kind"] == "rms":
        data["norm"]["eps"] *= old / stay
    return ModelConfig.read(data | {"width": stay})


def _with_mixers(config: ModelConfig, change: Callable[[dict[str, Any]], dict[str, Any]]) -> ModelConfig:
    return ModelConfig.read({**config.plain(), "mixer": [change(mixer.plain()) for mixer in config.mixer]})


def _fewer_heads(mixer: dict[str, Any], width: int, share: float) -> dict[str, Any]:
    if mixer["kind"] != "attention":
        return mixer
    heads, groups = mixer["heads"], mixer["key_groups"] or mixer["heads"]
    units = groups if groups > 1 else heads
    stay = left(share, units)
    changed = {"heads": stay * heads // units, "head_width": mixer["head_width"] or width // heads}
    if mixer["key_groups"] is not None:
        changed["key_groups"] = stay if groups > 1 else 1
    return mixer | changed


def _units(layer: Attention) -> int:
    return layer.groups if layer.groups > 1 else layer.config.heads


def left(share: float, count: int) -> int:
    """How many of `count` stay without a share of them; at least one."""
    return max(1, round((1 - share) * count))


def best(scores: Tensor, count: int) -> Tensor:
    """The places of the highest scores, rising."""
    return scores.topk(count).indices.sort().values


def _spread(units: Tensor, width: int) -> Tensor:
    """The features of units of `width` neighbours each."""
    return (units[:, None] * width + torch.arange(width)).flatten()
