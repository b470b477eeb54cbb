"""Cells, tables and captions of `tables.py`'s page."""

from collections.abc import Sequence
from typing import Any


def cell(value: object, column: str = "") -> str:
    """A number with the digits that a reader wants: three or four that count, thousands apart, no long exponents."""
    if value is None:
        return "differs"
    if column == "spread" and isinstance(value, float):
        return f"{100 * value:.1f} %"
    if isinstance(value, float):
        return _digits(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _digits(value: float) -> str:
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 0.01 or size == 0:
        return f"{value:.2f}"
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}e{int(exponent)}"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with its head."""
    names = [column.replace("_", " ") for column in columns]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(columns)]
    cells = [[cell(value, name) for value, name in zip(row, columns, strict=True)] for row in rows]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in cells])


def where(record: dict[str, Any]) -> str:
    """The machine, torch and date of a record."""
    machine = record["machine"]
    date = f", {record['date']}" if "date" in record else ""
    return f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}{date}."
