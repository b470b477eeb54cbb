"""Answers to claims as people read them: a table for the terminal, and the page `docs/claims.md`."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from claims.claim import Claim

from fairway.core.budget import show_bytes, show_seconds
from fairway.core.storage import read_json

HEAD = """# Claims, tried

Each answer comes from whole runs of `python benchmarks/claims/run.py NAME`: text, training, artifact, score in a fresh
process. The question, the arms and the prediction stood in `benchmarks/claims/NAME.yaml` before the first run. Arms
took turns, seed by seed; what is tuned was tuned at a seed of its own. Lower is better, except where text is said to
repeat itself, which stands beside the corpus. "Difference" is the
first arm less the second with its 95 % interval (for steps and seconds their ratio); p is Welch's, corrected by Holm
for the comparisons of one claim. "unresolved" means that these runs cannot tell. Such small models say nothing certain
about large ones.

This page is written by `python benchmarks/claims/run.py --page`.
"""
UNITS = {
    "bits_per_byte": "bits per byte",
    "beyond_context": "bits per byte beyond the context",
    "steps_to_loss": "steps to equal loss",
    "seconds_to_loss": "seconds to equal loss",
    "teacher_bits_per_byte": "bits per byte of its text by the teacher",
    "repetition": "4-grams repeated within its text",
    "sameness": "4-grams repeated over its texts",
}


def show(answer: dict[str, Any]) -> str:
    """The answer as lines for the terminal."""
    lines = []
    for arm, figures in answer["arms"].items():
        own = ", ".join(f"{UNITS[name]} {_mean(figures[name])}" for name in UNITS if name in figures)
        size = f"{figures['bytes']['mean']:,.0f} bytes, {figures['steps']['mean']:,.0f} steps"
        lines.append(f"  {arm}: {own}; n = {figures['bytes']['n']}; {size}")
    lines += [
        f"  {row['arm']} below {row['than']} ({UNITS[row['metric']]}): {row['verdict']}; {_effect(row)}"
        for row in answer["comparisons"]
    ]
    return "\n".join(lines)


def render(results: Path) -> str:
    """All answers in a folder as one page."""
    answers = [read_json(path) for path in sorted(results.glob("*.json"))]
    return "\n".join([HEAD, *_overview(answers), *(line for answer in answers for line in _section(answer))])


def _overview(answers: list[dict[str, Any]]) -> Iterator[str]:
    yield "| claim | predicted | verdict | difference |"
    yield "|---|---|---|---|"
    for answer in answers:
        for row in answer["comparisons"]:
            bound = f" by more than {row['margin']:g}" if row["margin"] > 0 else ""
            bound = f" or at most {-row['margin']:g} above" if row["margin"] < 0 else bound
            link = f"[{answer['name']}](#{answer['name']})"
            predicted = f"{row['arm']} below {row['than']}{bound}, {UNITS[row['metric']]}"
            yield f"| {link} | {predicted} | {row['verdict']} | {_effect(row)} |"
    yield ""


def _section(answer: dict[str, Any]) -> Iterator[str]:
    claim = Claim.read(answer["claim"])
    length = show_seconds(claim.seconds) if claim.seconds is not None else f"{claim.steps:,} steps"
    yield f"## {answer['name']}\n"
    yield f"{claim.question} After {claim.source}.\n"
    yield f"Predicted: {claim.prediction}\n"
    metrics = [name for name in UNITS if any(name in figures for figures in answer["arms"].values())]
    yield f"| arm | n | {' | '.join(UNITS[name] for name in metrics)} | bytes | parameters | MFLOP/token | steps | s |"
    yield f"|---|---|{'---|' * len(metrics)}---|---|---|---|---|"
    for arm, figures in answer["arms"].items():
        size = answer["sizes"][arm]
        cells = [_mean(figures[name]) if name in figures else "" for name in metrics]
        counts = f"{figures['bytes']['mean']:,.0f} | {size['parameters']:,} | {size['flops'] / 1e6:.3g}"
        pace = f"{figures['steps']['mean']:,.0f} | {figures['seconds']['mean']:.0f}"
        yield f"| {arm} | {figures['bytes']['n']} | {' | '.join(cells)} | {counts} | {pace} |"
    yield ""
    for arm, figures in answer["arms"].items():
        if "ahead_bits_per_byte" in figures:
            blind, ahead = _mean(figures["val_bits_per_byte"]), _mean(figures["ahead_bits_per_byte"])
            yield f"* {arm}, in bits per byte of the same windows: {blind}, and {ahead} where routers see later tokens"
    if "of_the_corpus" in answer:
        corpus = answer["of_the_corpus"]
        shown = ", ".join(f"{UNITS[name]} {_mean(corpus[name])}" for name in corpus)
        yield f"* The corpus itself, which text as varied would match: {shown}"
    for arm, tuned in answer["tuned"].items():
        tried = ", ".join(" ".join(setting) for setting in tuned["settings"])
        yield f"* {arm} tuned: {' '.join(tuned['best'])} of {tried}"
    host = answer["machine"]
    where = f"{host['processor']}, {host['torch threads']} threads, torch {answer['versions']['torch']}"
    held = ", ".join(claim.equal)
    yield f"* Equal: {held}. {length} a run, cap {show_bytes(claim.bytes)}. {where}, {answer['date']}.\n"


def _mean(figures: dict[str, Any]) -> str:
    spread = "" if figures["sigma"] is None else f" ± {figures['sigma']:.4g}"
    return f"{figures['mean']:.5g}{spread}"


def _effect(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return "too few runs for a test"
    values = row["difference"], row["low"], row["high"]
    middle, low, high = (f"{math.exp(value):.3f}" if row["ratio"] else f"{value:+.4f}" for value in values)
    return f"{'ratio ' if row['ratio'] else ''}{middle} [{low}, {high}], p = {row['p_corrected']:.2g}"
