"""Removes whole attention heads, by the loss's gradient at a gate on each or by gates that learn to close.

`gradient`: the heads of least `E|dL / dxi_h|`, divided by its Euclidean norm in each layer, go after training (Michel
et al. 2019). `hard_concrete`: until `end` of the run every head's output is multiplied by a random gate that is exactly
0 with a chance of its own, and the loss pays `penalty` for each gate's chance to be open (Louizos et al. 2018; for
heads: Voita et al. 2019); then the gates of least chance are closed for good, the others multiplied into the output
maps, and training goes on without gates. A removed head loses its columns of the output map, its rows of the query
map, and, once all heads of its group are gone, the group's rows of the key and value maps. Shape key: H heads, K head
width, D width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fairway.compress.head_gates import attention_layers, gate, importance, open_chance, sampled, settled
from fairway.compress.masks import apply, count_of, keep_highest
from fairway.compress.parts import Pruned, Pruner, PrunerConfig
from fairway.compress.topology import Masked, impose
from fairway.core.config import Source
from fairway.core.log import Listener, silent
from fairway.core.seed import generator
from fairway.data.batches import Batch
from fairway.model.lm import LanguageModel, Output
from fairway.model.mixer.attention import Attention
from fairway.train.parts import Hook, Trainee

SOURCE = Source("Michel et al.", 2019, "arXiv:1905.10650")

_OPEN = 2.0
"""First log alpha: open with a chance of 0.97."""


class Config(PrunerConfig):
    """Settings of head pruning."""

    sparsity: float = Field(default=0.25, ge=0, lt=1)
    """Share of all heads to remove."""
    gates: Literal["gradient", "hard_concrete"] = "gradient"
    """Choose heads after training by gradients, or while training by gates that learn."""
    penalty: float = Field(default=0.01, ge=0)
    """What the chance of one open gate adds to the loss, in nats; of `hard_concrete`."""
    rate: float = Field(default=0.05, gt=0)
    """Learning rate of the gates; of `hard_concrete`."""
    end: float = Field(default=0.6, gt=0, lt=1)
    """Progress at which gates close or open for good; of `hard_concrete`."""

    def build(self) -> Pruner:
        return Heads(self)

    def hooks(self, seed: int) -> list[Hook]:
        return [Gates(self, seed)] if self.gates == "hard_concrete" else []


class Heads(Pruner):
    """Needs calibration text, or a run trained with gates."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:  # noqa: ARG002
        layers = attention_layers(model)
        if self.config.gates == "gradient":
            scores = importance(model, layers, calibration)
            scores = {name: score_H / score_H.norm().clamp_min(1e-30) for name, score_H in scores.items()}
        else:
            scores = {name: _sizes(layer) for name, layer in layers.items()}
        return Pruned(model, apply(model, closed(layers, scores, self.config.sparsity)))


class Gates(Masked):
    """Trains a gate on every head, then closes the least open ones."""

    ranks = "one"

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.layers: dict[str, Attention] = {}
        self.log_alpha: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}
        self._uniform: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def start(self, loop: Trainee) -> None:
        self.layers = attention_layers(loop.model)
        super().start(loop)
        for name, layer in self.layers.items():
            heads, device = layer.config.heads, layer.output.weight.device
            first = self.log_alpha.get(name, torch.full((heads,), _OPEN))
            self.log_alpha[name] = first.detach().to(device).requires_grad_(True)
            self.moments[name] = self.moments.get(name, torch.zeros(2, heads)).to(device)
            self._handles.append(layer.output.register_forward_pre_hook(gate(lambda n=name, m=layer: self._gate(n, m))))
        self._draw(loop.step)

    def loss(self, loop: Trainee, batch: Batch, output: Output) -> dict[str, Tensor]:  # noqa: ARG002
        if self.masks:
            return {}
        return {"gates": self.config.penalty * open_chance(torch.cat(list(self.log_alpha.values()))).sum()}

    def gradients(self, loop: Trainee) -> bool:
        """One step of Adam on the gates."""
        for name, value in self.log_alpha.items():
            gradient, value.grad = value.grad, None
            if gradient is None or not bool(gradient.isfinite().all()):
                continue
            self.moments[name][0].lerp_(gradient, 0.1)
            self.moments[name][1].lerp_(gradient.square(), 0.01)
            mean, square = self.moments[name][0] / (1 - 0.9 ** (loop.step + 1)), self.moments[name][1]
            square = square / (1 - 0.99 ** (loop.step + 1))
            value.data.sub_(self.config.rate * mean / (square.sqrt() + 1e-12))
        return False

    def stepped(self, loop: Trainee) -> dict[str, float]:
        if not self.masks and loop.progress >= self.config.end:
            self._close(loop)
        self._draw(loop.step + 1)
        chances = [float(open_chance(value.detach()).sum()) for value in self.log_alpha.values()]
        return {"gates/open": sum(chances), **(self.density() if self.masks else {})}

    def finish(self, loop: Trainee) -> None:  # noqa: ARG002
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def state(self) -> dict[str, Tensor]:
        masks = {f"mask/{name}": mask for name, mask in self.masks.items()}
        moments = {f"moments/{name}": value for name, value in self.moments.items()}
        return masks | moments | {f"log_alpha/{name}": value.detach() for name, value in self.log_alpha.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for kind, kept in (("mask/", self.masks), ("moments/", self.moments), ("log_alpha/", self.log_alpha)):
            kept.clear()
            kept |= {name.removeprefix(kind): value.clone() for name, value in state.items() if name.startswith(kind)}

    def _gate(self, name: str, layer: Attention) -> Tensor | None:
        if self.masks:
            return None
        if layer.training:
            return sampled(self.log_alpha[name], self._uniform[name])
        return settled(self.log_alpha[name].detach())

    def _draw(self, step: int) -> None:
        for name, value in self.log_alpha.items():
            drawn = torch.rand(len(value), generator=generator(self.seed, "gates", step, name))
            self._uniform[name] = drawn.clamp(1e-6, 1 - 1e-6).to(value.device)

    def _close(self, loop: Trainee) -> None:
        scores = {name: value.detach() for name, value in self.log_alpha.items()}
        masks = closed(self.layers, scores, self.config.sparsity)
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.output.weight.mul_(
                    settled(scores[name]).repeat_interleave(layer.head_width).to(layer.output.weight)
                )
        self.masks = {name: mask.float() for name, mask in masks.items()}
        impose(loop, self.masks)


def closed(layers: dict[str, Attention], scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks without that share of all heads, those of the lowest scores."""
    joined = torch.cat(list(scores.values()))
    kept = keep_highest(joined, count_of(sparsity, len(joined)))
    pieces = kept.split([len(score_H) for score_H in scores.values()])
    masks: dict[str, Tensor] = {}
    for (name, layer), kept_H in zip(layers.items(), pieces, strict=True):
        masks |= masks_of(name, layer, kept_H)
    return masks


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


def _sizes(layer: Attention) -> Tensor:
    """Norm of each head's columns of the output map: next to nothing where its gate was closed."""
    return layer.output.weight.detach().unflatten(1, (-1, layer.head_width)).square().sum(dim=(0, 2)).sqrt()
