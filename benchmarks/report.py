"""Prints a table of contenders and keeps it with the machine and versions it was measured on."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pairs import Measured

from fairway.core.probe import machine, versions
from fairway.core.storage import write_json

RESULTS = Path(__file__).parent / "results"


def save(
    name: str, measured: Mapping[str, Measured], rates: Mapping[str, float], unit: str, ours: Sequence[str],
    **facts: float,
) -> None:  # fmt: skip
    """Writes `results/NAME.json` and prints each contender's rate, spread, and ratio to the best that is not ours."""
    best = max(rate for contender, rate in rates.items() if contender not in ours)
    print(f"{name}: {unit}, medians of {max(value.rounds for value in measured.values())} rounds")
    for contender, rate in sorted(rates.items(), key=lambda item: -item[1]):
        value = measured[contender]
        print(f"  {contender:<36}{rate:>12,.1f}  +-{100 * value.spread:4.1f} %  {rate / best:6.2f} x best peer")
    record = {
        "date": datetime.date.today().isoformat(),
        "unit": unit,
        "machine": machine(),
        "versions": versions(),
        "rates": dict(rates),
        "measured": {contender: asdict(value) for contender, value in measured.items()},
        **facts,
    }
    write_json(RESULTS / f"{name}.json", record)
