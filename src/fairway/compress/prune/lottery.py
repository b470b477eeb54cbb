"""Lottery tickets: train, prune by magnitude, set everything back to an early step, train again.

The run is divided into `rounds + 1` trainings of one length. Each but the last ends by removing the same share of
what is left; the next begins at step `rewind` of the first training again (0: initialisation), with weights,
optimizer, averages, schedule and the place in the data as they stood there, and only the masks new. Controls differ in
the last training alone, under masks found as the ticket's: survivors initialised anew, or as many weights at random
in each layer. Frankle & Carbin 2019; rewinding: Frankle et al. 2020 (arXiv:1912.05671).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fairway.compress.masks import Scope, keep_by_score, prunable
from fairway.compress.parts import Pruner, PrunerConfig
from fairway.compress.topology import Masked, Settle, impose
from fairway.core.config import Source
from fairway.core.seed import derive, generator
from fairway.model.parts import initialise
from fairway.train.clock import Course
from fairway.train.parts import Hook, Trainee

SOURCE = Source("Frankle & Carbin", 2019, "arXiv:1803.03635")

Control = Literal["ticket", "reinitialised", "random"]
Weights = dict[str, Tensor]


class Config(PrunerConfig):
    """Settings of lottery tickets."""

    sparsity: float = Field(default=0.5, gt=0, lt=1)
    """Share of the weights that is gone in the end."""
    rounds: int = Field(default=2, ge=1)
    """Times that weights are removed and training begins again; the budget is divided over all trainings."""
    rewind: float = Field(default=0.05, ge=0, lt=1)
    """Share of the first training after which everything to go back to is taken."""
    control: Control = "ticket"
    """In the last training: the early weights; weights initialised anew; or a random mask, as dense in each layer."""
    scope: Scope = "layer"
    """Compare the weights of one row, of one layer, or of the whole model."""

    def build(self) -> Pruner:
        return Settle(lambda sizes: keep_by_score(sizes, self.sparsity, self.scope))

    def hooks(self, seed: int) -> list[Hook]:
        return [Ticket(self, seed)]


class Ticket(Masked):
    """Prunes between trainings."""

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.rounds_done = 0

    def course(self) -> Course:
        return Course(self.config.rounds + 1, self.config.rewind)

    def again(self, loop: Trainee, trained: Mapping[str, Tensor]) -> None:
        self.rounds_done += 1
        last = self.rounds_done == self.config.rounds
        self.masks = self._drawn(prunable(loop.model), trained)
        if last and self.config.control == "random":
            self.masks = shuffled(self.masks, self.seed, self.rounds_done)
        if last and self.config.control == "reinitialised":
            initialise(loop.model, derive(self.seed, "ticket", self.rounds_done))
        impose(loop, self.masks)

    def stepped(self, loop: Trainee) -> dict[str, float]:  # noqa: ARG002
        return {**(self.density() if self.masks else {}), "ticket/round": float(self.rounds_done)}

    def state(self) -> dict[str, Tensor]:
        masks = {f"mask/{name}": mask for name, mask in self.masks.items()}
        return masks | {"rounds_done": torch.tensor(self.rounds_done)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.masks = {name[5:]: value for name, value in state.items() if name.startswith("mask/")}
        self.rounds_done = int(state["rounds_done"])

    def _drawn(self, matrices: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> Weights:
        """Masks of the next training, in the shapes of their parameters."""
        target = 1 - (1 - self.config.sparsity) ** (self.rounds_done / self.config.rounds)
        sizes = {name: trained[name].view(weight_RC.shape).abs().float() for name, weight_RC in matrices.items()}
        before = {name: mask.view(sizes[name].shape) for name, mask in self.masks.items()}
        masks = shrunk(sizes, before, target, self.config.scope)
        return {name: mask.view(trained[name].shape) for name, mask in masks.items()}


@dataclass(frozen=True)
class Round:
    """One round of `find_tickets`."""

    masks: Weights
    start: Weights
    """What training began from, masked."""
    end: Weights
    """What it came to."""


def find_tickets(
    train: Callable[[Weights, Weights], tuple[Weights, Weights]],
    initial: Weights,
    prune: Sequence[str],
    sparsity: float,
    rounds: int,
    scope: Scope = "layer",
) -> list[Round]:
    """Whole trainings: the dense one, then one for each round of pruning.

    `train(weights, masks)` trains a fresh copy (optimizer, schedule and data order anew) and returns the
    final weights and those to rewind to; with no rewinding these are what it was given. `prune` names the
    weights that may go. Masks only shrink, and survivors restart bit for bit from the weights of the first
    training.
    """
    masks = {name: torch.ones_like(initial[name]) for name in prune}
    end, early = train(dict(initial), dict(masks))
    found = [Round(masks, dict(initial), end)]
    for done in range(1, rounds + 1):
        target = 1 - (1 - sparsity) ** (done / rounds)
        masks = shrunk({name: end[name].abs() for name in prune}, masks, target, scope)
        start = {name: value * masks[name] if name in masks else value.clone() for name, value in early.items()}
        end, _ = train(dict(start), dict(masks))
        found.append(Round(masks, start, end))
    return found


def shrunk(sizes: Mapping[str, Tensor], masks: Mapping[str, Tensor], target: float, scope: Scope) -> Weights:
    """Masks that keep the largest weights of those still there, down to the target sparsity."""
    scores = {n: torch.where(masks[n] > 0, size, -1.0) if n in masks else size for n, size in sizes.items()}
    return {name: kept.to(sizes[name].dtype) for name, kept in keep_by_score(scores, target, scope).items()}


def shuffled(masks: Mapping[str, Tensor], seed: int, turn: int) -> Weights:
    """Random masks of the same density in each layer."""
    result = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator(seed, "shuffle", turn, name))
        result[name] = mask.flatten()[order].view(mask.shape)
    return result


def interpolated(first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float) -> Weights:
    """`(1 - share) first + share second`."""
    return {name: torch.lerp(value, second[name], share) for name, value in first.items()}


def error_barrier(errors: Sequence[float]) -> float:
    """Highest error along a line between two networks, above the mean of its ends; below 2 % they count as
    connected.
    """
    return max(errors) - (errors[0] + errors[-1]) / 2
