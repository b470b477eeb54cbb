"""Network slimming: a penalty pulls the gains of norms to zero, and the inputs behind the smallest gains
are removed.

Training adds `penalty sum |gain|` (subgradient `penalty sign(gain)`); afterwards the gains below a global
percentile become exactly zero (a penalty alone never gets there), and with them the columns of linear maps
that see nothing but zeros on calibration text. A shift beside the gain still passes, so such inputs are not
dead and stay. Liu et al. 2017. Shape key: D width.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.compress.calibrate import gather
from fairway.compress.masks import apply, count_of, keep_highest, prunable
from fairway.compress.parts import Pruned, Pruner, PrunerConfig
from fairway.core.config import Source
from fairway.core.errors import ConfigError
from fairway.core.log import Listener, silent
from fairway.model.lm import LanguageModel
from fairway.model.parts import Norm, Role
from fairway.train.parts import Hook, Trainee

SOURCE = Source("Liu et al.", 2017, "arXiv:1708.06519")


class Config(PrunerConfig):
    """Settings of network slimming."""

    sparsity: float = Field(default=0.2, ge=0, lt=1)
    """Share of the gains to remove."""
    penalty: float = Field(default=1e-4, ge=0)
    """Weight of the sum of absolute gains in the loss, in nats."""

    def build(self) -> Pruner:
        return Slimming(self)

    def hooks(self, seed: int) -> list[Hook]:  # noqa: ARG002
        return [Penalty(self.penalty)]


class Penalty(Hook):
    """Adds the subgradient of the penalty to the gains' gradients."""

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty

    def gradients(self, loop: Trainee) -> bool:
        for gain, offset in gains(loop.model).values():
            if gain.grad is not None:
                gain.grad.add_(torch.sign(gain.detach() + offset), alpha=self.penalty)
        return False


class Slimming(Pruner):
    """Needs calibration text."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:  # noqa: ARG002
        found = gains(model)
        with torch.no_grad():
            sizes = torch.cat([(gain + offset).abs() for gain, offset in found.values()])
            kept = keep_highest(sizes, count_of(self.config.sparsity, len(sizes)))
            for (gain, offset), kept_D in zip(
                found.values(), kept.split([len(g) for g, _ in found.values()]), strict=True
            ):
                gain.copy_(torch.where(kept_D, gain, torch.tensor(-offset)))
        weights = prunable(model)
        masks = {
            name: (statistics.squares_C > 0).expand(weights[name].shape)
            for name, statistics in gather(model, calibration).items()
            if name in weights
        }
        return Pruned(model, apply(model, masks))


def gains(model: LanguageModel) -> dict[str, tuple[nn.Parameter, float]]:
    """The gains of norms over the model's width, with what must be added to each to get the factor itself."""
    found: dict[str, tuple[nn.Parameter, float]] = {}
    for name, module in model.depth.named_modules():
        gain = getattr(module, "gain", None)
        if isinstance(module, Norm) and isinstance(gain, nn.Parameter) and gain.shape == (model.config.width,):
            assert module.roles()["gain"] is Role.VECTOR
            found[name] = gain, 1.0 if getattr(module, "unit_offset", False) else 0.0
    if not found:
        raise ConfigError(f"model.norm.kind={model.config.norm.kind} has no gains to slim; rms or layer would work.")
    return found
