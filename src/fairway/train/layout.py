"""Which layout of the weights a recipe and its ranks ask for, and whether they can have it."""

from collections.abc import Mapping, Sequence

from fairway.core.errors import ConfigError
from fairway.model.lm import LanguageModel
from fairway.optim.parts import RateScale
from fairway.train.distributed import Team
from fairway.train.parallel import Layout, Pieces, Replicas
from fairway.train.parts import Hook
from fairway.train.settings import TrainConfig


def make_layout(
    model: LanguageModel, config: TrainConfig, scales: Mapping[str, RateScale] | None, team: Team
) -> Layout:
    """What the recipe asks for; one rank alone needs neither replicas nor pieces."""
    if team.world == 1:
        return Layout(model, config.optimizer, scales)
    if config.parallel == "fsdp":
        return Pieces(model, config.optimizer, scales, team)
    return Replicas(model, config.optimizer, scales, team, config.share_updates)


def require_shareable(config: TrainConfig, context: int, hooks: Sequence[Hook], team: Team) -> None:
    """Raises `ConfigError` where several ranks cannot do what the recipe asks."""
    uneven = [rows for rows, _ in config.stages.shapes(config.batch, context) if rows % team.world]
    if uneven:
        raise ConfigError(
            f"{team.world} ranks cannot share a batch of {uneven[0]} rows; a multiple of {team.world} would work."
        )
    allowed = ("slices",) if config.parallel == "fsdp" else ("replicas", "slices")
    barred = [type(hook).__name__ for hook in hooks if hook.ranks not in allowed]
    if team.world > 1 and barred:
        other = "train.parallel=ddp, or one rank," if config.parallel == "fsdp" else "one rank"
        raise ConfigError(f"{barred[0]} does not work on {team.world} ranks with {config.parallel}; {other} would.")
