"""The same architecture at another width, heads keeping their size, as muP compares models."""

from typing import Any

from fairway.core.errors import ConfigError
from fairway.model.lm import ModelConfig


def at_width(config: ModelConfig, width: int) -> ModelConfig:
    """The model with every mixer's heads (and groups of heads) in proportion to the width.

    Raises `ConfigError` where they do not come out whole.
    """
    mixers = [_grown(mixer.plain(), width, config.width) for mixer in config.mixer]
    return ModelConfig.read({**config.plain(), "width": width, "mixer": mixers})


def _grown(mixer: dict[str, Any], width: int, old: int) -> dict[str, Any]:
    changed = {}
    for name in ("heads", "key_groups"):
        count = mixer.get(name)
        if count is None:
            continue
        if count * width % old:
            raise ConfigError(
                f"{count} {name} at width {old} cannot become those of width {width}; multiples of {old // count} "
                "would work."
            )
        changed[name] = count * width // old
    return mixer | changed
