"""Bytes and seconds as people write them, and the ledger of where the seconds went."""

import math
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from fairway.core.config import Config

_BYTE_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9}
_BYTE_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}
_SECOND_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(value: Any) -> int:
    """`500kB`, `1.5 MB`, `2MiB` or a plain number as bytes; decimal units are powers of 1,000."""
    return int(_parse(value, _BYTE_UNITS, "500kB, 16MB or a number of bytes"))


def parse_seconds(value: Any) -> float:
    """`90s`, `3m`, `1h` or a plain number as seconds."""
    return _parse(value, _SECOND_UNITS, "90s, 3m, 1h or a number of seconds")


def show_bytes(count: float) -> str:
    """Bytes in decimal units, as the budget counts them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.0f} B"


def show_seconds(seconds: float) -> str:
    """Seconds as a short reading: `0.42 s`, `37 s`, `3 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _quantity_schema(units: Iterable[str], **number: Any) -> WithJsonSchema:
    """JSON schema of a number, or of a number with one of some units."""
    named = "|".join(unit for unit in units if unit)
    text = {"type": "string", "pattern": rf"^\s*\d+(\.\d+)?\s*(?:{_any_case(named)})?\s*$"}
    return WithJsonSchema({"anyOf": [number, text]})


def _any_case(text: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in text)


Bytes = Annotated[
    int, BeforeValidator(parse_bytes), Field(ge=1), _quantity_schema(_BYTE_UNITS, type="integer", minimum=1)
]
Seconds = Annotated[
    float,
    BeforeValidator(parse_seconds),
    Field(gt=0),
    _quantity_schema(_SECOND_UNITS, type="number", exclusiveMinimum=0),
]


class Budget(Config):
    """What a run may use. Training stops by the clock, or after `steps` where they are set."""

    bytes: Bytes = 500_000
    """Largest size of the artifact file."""
    seconds: Seconds = 180.0
    """Training time by the wall clock, start-up and compilation of the training step included."""
    steps: int | None = Field(default=None, ge=1)
    """Train this many steps instead of by the clock, or as many fewer as equal trainings leave over where a technique
    divides the run; such a run can be repeated bit for bit."""
    memory: Bytes | None = None
    """Most that the blocks' activations may take at the peak of a step; blocks are computed again as it needs."""


class Ledger:
    """Seconds by phase. Phases do not nest; what happens outside every phase is counted as `other`."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})
        self._start = time.monotonic() - sum(self.seconds.values())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent in the block to one phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def total(self) -> float:
        """Seconds since the ledger was opened."""
        return time.monotonic() - self._start

    def entries(self) -> dict[str, float]:
        """Seconds of every phase, and the rest."""
        rest = max(0.0, self.total() - sum(self.seconds.values()))
        return {**self.seconds, "other": self.seconds.get("other", 0.0) + rest}


def _parse(value: Any, units: dict[str, float] | dict[str, int], examples: str) -> float:
    refusal = ValueError(f"{value!r} was given; {examples} would work")
    if isinstance(value, bool):
        raise refusal
    if isinstance(value, (int, float)):
        amount = float(value)
    else:
        match = _QUANTITY.fullmatch(str(value))
        if match is None or match[2].lower() not in units:
            raise refusal
        amount = float(match[1]) * units[match[2].lower()]
    if not math.isfinite(amount):
        raise refusal
    return amount
