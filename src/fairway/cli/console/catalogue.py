"""Every technique that a recipe can name, found through the annotations of the recipe's own fields."""

from collections.abc import Iterator
from typing import Any, get_args

from fairway.artifact.parts import PACKINGS
from fairway.core.config import Config, Slot
from fairway.core.errors import ConfigError, suggestion
from fairway.run import Recipe


def slots(config: type[Config] = Recipe) -> Iterator[tuple[str, Slot]]:
    """Every slot below a config, with the path of the first field that has it; techniques may hold slots too."""
    yield from _below(config, "", set())


def catalogue(wanted: str = "") -> list[dict[str, Any]]:
    """Slot, path in the recipe, kind, summary and source of each technique whose slot's name contains `wanted`."""
    every = [*slots(), ("(inside artifacts)", PACKINGS)]
    names = [slot.package.removeprefix("fairway.") for _, slot in every]
    chosen = [pair for name, pair in zip(names, every, strict=True) if wanted in name]
    if not chosen:
        raise ConfigError(f'There is no slot "{wanted}"; {", ".join(names)} would work.{suggestion(wanted, names)}')
    return [
        {
            "slot": found.slot,
            "path": path,
            "kind": found.kind,
            "summary": found.summary,
            "author": found.source.author,
            "year": found.source.year,
            "reference": found.source.reference,
        }
        for path, slot in chosen
        for found in slot.techniques()
    ]


def _below(config: type[Config], path: str, seen: set[str]) -> Iterator[tuple[str, Slot]]:
    for name, found in config.model_fields.items():
        here = f"{path}.{name}" if path else name
        held = [item for item in found.metadata if isinstance(item, Slot)]
        for slot in held:
            if slot.package not in seen:
                seen.add(slot.package)
                yield here, slot
                for technique in dict.fromkeys(entry.config for entry in slot.techniques()):
                    yield from _below(technique, here, seen)
        for inner in () if held else (found.annotation, *get_args(found.annotation)):
            if isinstance(inner, type) and issubclass(inner, Config):
                yield from _below(inner, here, seen)
