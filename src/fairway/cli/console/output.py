"""What a verb prints: tables for people, one line of JSON for machines."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fairway.core.budget import show_bytes

_WIDTH_WITHOUT_TERMINAL = 120


def print_json(value: Any) -> None:
    """One line of strict JSON; a figure that is not a number is null."""
    print(json.dumps(_plain(value), separators=(",", ":"), allow_nan=False), flush=True)


def console(stream: Any = None) -> Console:
    """A console on stdout, or on another stream; wide enough for tables where no terminal sets the width."""
    stream = stream or sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL, highlight=False)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table whose columns of numbers are aligned on the right."""
    rows = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        numbers = all(isinstance(row[index], (int, float)) or row[index] is None for row in rows)
        table.add_column(column, justify="right" if numbers and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(show(cell)) for cell in row))
    _print(title, table)


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Names and values in two columns."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(name), Text(show(value)))
    _print(title, table)


def show(value: Any) -> str:
    """A cell: whole numbers with thousands, others with about four digits, lists with commas."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(show(item) for item in value)
    return str(value)


def share(part: float, whole: float) -> str:
    """A percentage of the whole, empty where there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else ""


def size(count: float) -> str:
    """Bytes for people, exact count included."""
    return f"{show_bytes(count)} ({count:,.0f} bytes)" if count >= 1000 else f"{count:,.0f} bytes"


def _print(title: str, table: Table) -> None:
    out = console()
    if title:
        out.print(Text(title, style="bold"))
    out.print(table)
    out.print()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Path):
        return str(value)
    return value
