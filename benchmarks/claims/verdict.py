"""What the runs of a claim say: means with deviations, the difference with its interval, and yes, no or unresolved.

A comparison that was predicted as `arm` below `than` by more than a margin is answered "yes" where Welch's test, after
Holm's correction for the several comparisons of the claim, finds so; "no" where it finds the opposite; otherwise
"unresolved".
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from claims.claim import Claim, Comparison, Metric

from fairway.campaign.stats import compare, holm

LOGARITHMIC: frozenset[Metric] = frozenset({"steps_to_loss", "seconds_to_loss"})
"""Compared as ratios: the difference of logarithms is tested, and its exponential shown."""
LEVEL = 0.05

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""The figures of each run, by arm."""


def judge(claim: Claim, runs: Runs) -> list[dict[str, Any]]:
    """One row for each comparison of the claim, in its order."""
    rows = [_compared(claim, one, runs) for one in claim.comparisons]
    raw = {str(index): row["p"] for index, row in enumerate(rows) if row["p"] is not None}
    for index, corrected in holm(raw).items():
        row = rows[int(index)]
        row["p_corrected"] = corrected
        if corrected < LEVEL:
            row["verdict"] = "yes" if row["difference"] < -row["margin"] else "no"
    return rows


def values_of(claim: Claim, metric: Metric, runs: Runs) -> dict[str, list[float]]:
    """The metric of every run by arm."""
    if metric in LOGARITHMIC:
        place = 0 if metric == "steps_to_loss" else 1
        target = target_of(runs)
        return {arm: [reached(run["curve"], target)[place] for run in those] for arm, those in runs.items()}
    if metric == "beyond_context":
        kinds = {arm: claim.arms[arm].extension or "none" for arm in runs}
        return {arm: [run[metric][kinds[arm]] for run in those] for arm, those in runs.items()}
    return {arm: [run[metric] for run in those if metric in run] for arm, those in runs.items()}


def target_of(runs: Runs) -> float:
    """The validation loss that every run reaches: the largest of their smallest."""
    return max(min(loss for *_, loss in run["curve"]) for those in runs.values() for run in those)


def reached(curve: Sequence[Sequence[float]], target: float) -> tuple[float, float]:
    """Steps and seconds at which a curve of (step, second, loss) first lies at the target, between its points."""
    before: Sequence[float] | None = None
    for point in curve:
        step, second, loss = point
        if loss <= target:
            if before is None or before[2] <= loss:
                return step, second
            share = (before[2] - target) / (before[2] - loss)
            return before[0] + share * (step - before[0]), before[1] + share * (second - before[1])
        before = point
    raise ValueError(f"the loss {target} is never reached")


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and number of runs; no deviation of a single run."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sigma": spread, "n": len(values)}


def _compared(claim: Claim, one: Comparison, runs: Runs) -> dict[str, Any]:
    values = values_of(claim, one.metric, runs)
    first, second = values[one.than], values[one.arm]
    row: dict[str, Any] = {
        **one.plain(),
        "ratio": one.metric in LOGARITHMIC,
        "arm_values": summary(second),
        "than_values": summary(first),
        "difference": None, "low": None, "high": None, "p": None, "p_corrected": None,
        "verdict": "unresolved",
    }  # fmt: skip
    if row["ratio"]:
        first, second = [math.log(value) for value in first], [math.log(value) for value in second]
    if min(len(first), len(second)) > 1 and all(map(math.isfinite, (*first, *second))):
        plain = compare(first, second)
        moved = compare(first, [value + one.margin for value in second])
        row |= {"difference": plain.effect, "low": plain.low, "high": plain.high, "p": moved.p}
    return row
