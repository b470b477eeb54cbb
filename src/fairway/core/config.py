"""Recipes as typed, frozen, nested settings, and the slots that technique files plug into.

A technique is a module in a slot's package (`fairway.model.mixer.gla` is a mixer). Its `Config` is found by
the file's name: `mixer: {kind: gla}`. A module whose small variants share one file lists them in `KINDS` and
reads its own `kind`. Nothing is registered anywhere; a new file in the folder is a new choice.

This module imports neither torch nor numpy: recipes can be parsed, overridden and hashed on any machine.
"""

import hashlib
import importlib
import json
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from fairway.core.errors import ConfigError, suggestion

INHERITED = "_inherited"


class Config(BaseModel):
    """Frozen settings; unknown fields are refused. Holds its own knobs and its children's configs."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for name in data:
                if name == INHERITED:
                    raise ValueError(f"{data[name]!r} was given; a mapping of settings would work")
                if name not in cls.model_fields:
                    known = sorted(cls.model_fields)
                    would = f"{', '.join(known)} would work" if known else "it takes no settings"
                    raise ValueError(f'"{name}" is unknown here; {would}.{suggestion(str(name), known)}')
        return data

    @classmethod
    def read(cls, data: Mapping[str, Any], *, origin: str = "recipe") -> Self:
        """Validates nested plain data; raises `ConfigError` naming field, value and what would work."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ConfigError(_explain(error, origin)) from None

    def plain(self) -> dict[str, Any]:
        """The settings as nested JSON-able values, `kind` included; `read(plain())` gives an equal config."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> str:
        """SHA-256 over every setting, independent of key order and of defaults being written out."""
        canonical = json.dumps(self.plain(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Source:
    """Where a technique comes from."""

    author: str
    year: int
    reference: str
    """arXiv id, or the venue or URL where there is none."""


class Technique(Config):
    """Base of every technique's `Config`; `kind` is the file's name, or one of the module's `KINDS`."""

    kind: str = ""

    @model_validator(mode="before")
    @classmethod
    def _name_the_kind(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        kind, kinds = data.get("kind"), cls.kinds()
        if not kind and len(kinds) == 1:
            kind = kinds[0]
        if kind not in kinds:
            raise ValueError(f"kind {kind!r} is unknown; {', '.join(kinds)} would work.")
        return {**data, "kind": kind}

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """Every value of `kind` this class answers to."""
        module = sys.modules[cls.__module__]
        return tuple(getattr(module, "KINDS", (cls.__module__.rpartition(".")[2],)))

    @classmethod
    def shorthand(cls, value: Any) -> dict[str, Any] | None:  # noqa: ARG003
        """Plain data that stands for a config of this slot (`depth: 6`); None where there is no such form."""
        return None


@dataclass(frozen=True)
class Found:
    """A technique as `fairway techniques` lists it."""

    slot: str
    kind: str
    summary: str
    source: Source
    config: type[Technique]


@dataclass(frozen=True)
class Slot:
    """Annotation of a config field that takes any technique of `package`.

    `mixer: Annotated[MixerConfig, Slot("fairway.model.mixer", "attention")]` accepts `{kind: gla, heads: 4}`,
    a bare `gla`, a built config, or what the base's `shorthand` understands. With `pattern=True` the field is
    a tuple and also accepts a list of them.
    """

    package: str
    default: str
    pattern: bool = False
    nested: bool = False
    """Set by a technique that holds one of its own slot: its schema then names kinds, not their settings."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(self._serialize),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        if self.nested:
            named = {
                "type": "object",
                "properties": {"kind": {"enum": sorted(self.kinds())}},
                "required": ["kind"],
            }
            return {"anyOf": [{"enum": sorted(self.kinds())}, named], "default": self.default}
        one: JsonSchemaValue = {
            "anyOf": [
                {"enum": sorted(self.kinds())},
                *(_technique_schema(config) for config in _unique(found.config for found in self.techniques())),
            ],
            "default": self.default,
        }
        if self.config(self.default).shorthand(1) is not None:
            one["anyOf"].append({"type": "number"})
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]} if self.pattern else one

    def techniques(self) -> list[Found]:
        """Every technique of this slot, in the order of their names."""
        return [found for module in _modules(self.package) for found in _described(self.package, module)]

    def kinds(self) -> list[str]:
        """Every `kind` this slot accepts."""
        return [found.kind for found in self.techniques()]

    def config(self, kind: str) -> type[Technique]:
        """The `Config` class of one kind; a file of that name is tried first so that no other need load."""
        if kind in _modules(self.package):
            config = _load(self.package, kind)
            if kind in config.kinds():
                return config
        for found in self.techniques():
            if found.kind == kind:
                return found.config
        kinds = self.kinds()
        raise ValueError(f"kind {kind!r} is unknown; {', '.join(kinds)} would work.{suggestion(kind, kinds)}")

    def _validate(self, value: Any) -> Technique | tuple[Technique, ...]:
        if not self.pattern:
            return self._one(value)
        if isinstance(value, Sequence) and not isinstance(value, str):
            if not value:
                raise ValueError("an empty list was given; at least one technique is needed")
            return tuple(self._one(item) for item in value)
        return (self._one(value),)

    def _one(self, value: Any) -> Technique:
        if isinstance(value, Technique):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            value = self._expanded(value)
        data = dict(value)
        inherited = data.pop(INHERITED, {})
        if not isinstance(inherited, Mapping):
            inherited = self._expanded(inherited)
        kind = data.get("kind")
        config = self.config(self.default if kind is None or kind == "" else str(kind))
        data = {key: old for key, old in inherited.items() if key in config.model_fields} | data
        return config.model_validate(data)

    def _expanded(self, value: Any) -> dict[str, Any]:
        expanded = self.config(self.default).shorthand(value)
        if expanded is None:
            raise ValueError(f"{value!r} was given; a kind or a mapping with `kind` would work")
        return expanded

    def _serialize(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return value[0].plain() if len(value) == 1 else [item.plain() for item in value]
        return value.plain()


class _Reader(yaml.SafeLoader):
    """YAML without numbers to base 60, among which `2:4` would be 124."""


_BASE_SIXTY = re.compile(r"[-+]?\d[\d_]*(:\d+)+(\.\d*)?$")
_Reader.yaml_implicit_resolvers = {
    first: [("tag:yaml.org,2002:str", _BASE_SIXTY), *known]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML recipe as plain data."""
    try:
        data = _Reader(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise ConfigError(f"There is no recipe {path}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {_flat(error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}; a recipe is a mapping of sections to settings.")
    return data


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`data` with `section.field=value` assignments applied; values are read as YAML.

    Choosing another `kind` keeps those settings of the old technique that the new one has too.
    """
    result = json.loads(json.dumps(data, default=str))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f'"{assignment}" is not an override; write section.field=value, as in model.width=256.')
        try:
            value = _Reader(text).get_single_data()
        except yaml.YAMLError as error:
            raise ConfigError(f'The value in "{assignment}" cannot be read: {_flat(error)}') from None
        _assign(result, keys, value)
    return result


def _assign(node: dict[str, Any], keys: list[str], value: Any) -> None:
    *path, last = keys
    for depth, key in enumerate(path):
        child: Any = node.get(key)
        if isinstance(child, list):
            if len(child) > 1 and keys[depth + 1 :] != ["kind"]:
                raise ConfigError(
                    f'"{".".join(keys)}" names one setting of a list of {len(child)}; '
                    f"write the whole list, as in {'.'.join(keys[: depth + 1])}=[...]."
                )
            child = child[0] if child else None
        if isinstance(child, str):
            child = {"kind": child}
        elif not isinstance(child, dict):
            child = {} if child is None else {INHERITED: child}
        node[key] = child
        node = cast("dict[str, Any]", child)
    if last == "kind" and node.get("kind", value) != value:
        inherited = {key: old for key, old in node.items() if key not in ("kind", INHERITED)}
        node.clear()
        node[INHERITED] = inherited
    node[last] = value


@cache
def _modules(package: str) -> tuple[str, ...]:
    home = importlib.import_module(package)
    return tuple(sorted(info.name for info in pkgutil.iter_modules(home.__path__) if not info.ispkg))


def forget_modules() -> None:
    """Looks at the slots' folders anew, for files added while the process runs."""
    _modules.cache_clear()
    importlib.invalidate_caches()


def _load(package: str, name: str) -> type[Technique]:
    module = importlib.import_module(f"{package}.{name}")
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Technique)):
        raise ConfigError(f"{package}.{name} has no Config; every file in a slot's folder is a technique.")
    return config


def _described(package: str, name: str) -> Iterator[Found]:
    config = _load(package, name)
    module = sys.modules[config.__module__]
    summaries: Mapping[str, str] = getattr(module, "SUMMARIES", {})
    sources: Mapping[str, Source] = getattr(module, "SOURCES", {})
    first_line = (module.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    for kind in config.kinds():
        source = sources.get(kind) or getattr(module, "SOURCE", None)
        if source is None:
            raise ConfigError(f"{module.__name__} names no SOURCE for {kind}.")
        yield Found(package.removeprefix("fairway."), kind, summaries.get(kind, first_line), source, config)


def _technique_schema(config: type[Technique]) -> JsonSchemaValue:
    schema = config.model_json_schema(ref_template="{model}")
    schema = _inlined(schema, schema.pop("$defs", {}))
    properties = schema.setdefault("properties", {})
    properties["kind"] = {"enum": list(config.kinds()), "title": "Kind"}
    schema["title"] = " | ".join(config.kinds())
    return schema


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema that stands alone: every reference replaced by what it refers to."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    own = {key: value for key, value in schema.items() if key != "$ref"}
    schema = {**definitions.get(schema.get("$ref", ""), {}), **own}
    return {key: _inlined(value, definitions) for key, value in schema.items()}


def _unique(items: Iterator[type[Technique]]) -> list[type[Technique]]:
    return list(dict.fromkeys(items))


def _explain(error: ValidationError, origin: str) -> str:
    problems = []
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"]) or origin
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ValueError):
            problems.append(f"{where}: {cause}")
        elif detail["type"] == "missing":
            problems.append(f"{where} is missing")
        else:
            problems.append(f"{where} is {detail['input']!r:.80}; {_lowered(detail['msg'])}")
    shown = problems[:8] + ([f"... and {len(problems) - 8} more"] if len(problems) > 8 else [])
    return f"This {origin} cannot be used. " + "; ".join(shown)


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())
