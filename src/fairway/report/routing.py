"""How a model with routers or loops spent its computation: load of experts, choice of tokens, steps of pondering.

The figures are those that the model's parts reported at every training step; the table holds their means over the last
tenth of the run, the charts their course.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fairway.report.chart import HALF, Line, lines, smoothed

FIGURES: dict[str, tuple[str, str]] = {
    "load_entropy": ("load entropy", "Entropy of the experts' load over the largest possible; 1 is even."),
    "dead_experts": ("dead experts", "Experts that got no token in a step."),
    "drop_rate": ("drop rate", "Share of the assignments that exceeded an expert's capacity."),
    "causal_agreement": ("causal agreement", "Share of tokens chosen alike with and without sight of later ones."),
    "causal_share": ("causal share", "Share of tokens that would be chosen without sight of later ones."),
    "steps": ("steps", "Steps that a token takes on average before it halts."),
    "remainder": ("remainder", "Mean halting probability left for a token's last step."),
}
"""What parts report, with its name and meaning."""
_LAST = 0.1


@dataclass(frozen=True)
class Routing:
    """What the page shows of it; empty where the model has nothing of the kind."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    """One for each part, then its figures; empty cells for what it does not report."""
    charts: list[tuple[str, str, str]]
    """Title, drawing, caption."""


def routing(records: Sequence[Mapping[str, Any]], time: str) -> Routing:
    """The figures of all parts from the log of a run; `time` names the x axis in it."""
    found = _by_part(records)
    present = [name for name in FIGURES if any(name in figures for figures in found.values())]
    columns = ("part", *(FIGURES[name][0] for name in present))
    last = records[-max(1, round(_LAST * len(records))) :]
    rows: list[tuple[str, ...]] = [
        (part, *(_mean(last, f"{part}.{name}") if name in figures else "" for name in present))
        for part, figures in found.items()
    ]
    charts = []
    for name in present:
        title, meaning = FIGURES[name]
        curves = [_curve(records, time, part, name) for part, figures in found.items() if name in figures]
        drawing = lines(f"{title} over time", curves, "seconds of training", title, width=HALF)
        if drawing:
            charts.append((title.capitalize(), drawing, f"{meaning} Smoothed."))
    return Routing(columns, rows, charts)


def _by_part(records: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """The figures that each part reports, in the order of the log."""
    found: dict[str, set[str]] = {}
    for record in records:
        for key in record:
            part, _, name = key.rpartition(".")
            if part and name in FIGURES:
                found.setdefault(part, set()).add(name)
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts block 10 behind block 9."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in name.split(".")]


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [float(record[key]) for record in records if key in record]
    return f"{fmean(values):.3f}" if values else ""


def _curve(records: Sequence[Mapping[str, Any]], time: str, part: str, name: str) -> Line:
    key = f"{part}.{name}"
    points = [(float(record[time]), float(record[key])) for record in records if key in record and time in record]
    return smoothed(part, [x for x, _ in points], [y for _, y in points])
