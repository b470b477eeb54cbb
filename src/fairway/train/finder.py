"""Finds a learning rate by raising it from step to step until the loss explodes.

Rates grow geometrically; the loss is smoothed by an exponential mean without bias. The suggestion is the rate at
which the smoothed loss falls fastest over the logarithm of the rate. Smith 2017 (arXiv:1506.01186).
"""

import math
from dataclasses import dataclass

import torch

from fairway.core.errors import TrainingError
from fairway.core.log import Event, Listener
from fairway.core.seed import derive
from fairway.train.loop import Loop

_MEMORY = 0.9
_EXPLODED = 1.5
_PROGRESS = 0.2
"""Where momentum and staged features are taken to stand: past their warm-up."""


@dataclass(frozen=True)
class Finding:
    """A range test."""

    factors: tuple[float, ...]
    """Factors on every learning rate of the recipe."""
    losses: tuple[float, ...]
    """Smoothed, in nats per token."""
    suggestion: float
    """The factor to use."""


def find_rate(loop: Loop, listener: Listener, *, low: float = 1e-3, high: float = 1e2, steps: int = 100) -> Finding:
    """Tries factors on the learning rates from `low` to `high`; the loop's weights are spoilt afterwards.

    Raises `TrainingError` where the loss explodes before anything can be seen.
    """
    factors, losses, mean, best = [], [], 0.0, math.inf
    loop.model.train()
    for step in range(steps):
        factor = low * (high / low) ** (step / (steps - 1))
        torch.manual_seed(derive(loop.seed, "find", step))
        batch = loop.batches.rows(step * loop.config.batch, loop.config.batch, loop.model.config.context)
        loss, norm, _ = loop.accumulate(batch, _PROGRESS)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            break
        mean = _MEMORY * mean + (1 - _MEMORY) * loss
        smooth = mean / (1 - _MEMORY ** (step + 1))
        factors.append(factor)
        losses.append(smooth)
        listener(Event("find", step / steps, {"step": step + 1, "train/loss": smooth}))
        best = min(best, smooth)
        if smooth > _EXPLODED * best:
            break
        if norm > loop.config.clip:
            torch._foreach_mul_(loop.layout.gradients(), loop.config.clip / norm)
        loop.layout.update(factor, _PROGRESS)
    listener(Event("find", 1.0))
    return Finding(tuple(factors), tuple(losses), _steepest(factors, losses))


def _steepest(factors: list[float], losses: list[float]) -> float:
    """The factor at the steepest fall of a line through seven neighbours, before the lowest loss."""
    half = 3
    lowest = losses.index(min(losses)) if losses else 0
    if lowest < 2 * half:
        raise TrainingError(
            f"The loss rose after {lowest} steps, at {factors[lowest] if factors else 0:.3g} times the learning rate; "
            "a lower start or more steps would work."
        )
    x = torch.tensor(factors, dtype=torch.float64).log()
    y = torch.tensor(losses, dtype=torch.float64)
    slopes = []
    for middle in range(half, lowest - half + 1):
        near = slice(middle - half, middle + half + 1)
        centred = x[near] - x[near].mean()
        slopes.append(float((centred * y[near]).sum() / centred.square().sum()))
    return factors[half + slopes.index(min(slopes))]
