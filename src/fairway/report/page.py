"""The report of a run: one HTML file that needs no network, with charts as inline SVG.

It shows whatever the folder holds: an unfinished run has curves but no score.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fairway.core.budget import show_bytes, show_seconds
from fairway.core.config import read_yaml
from fairway.core.errors import ConfigError
from fairway.core.storage import read_journal, read_json, write_text
from fairway.report.anatomy import Anatomy, anatomy, weights_by_part
from fairway.report.chart import HALF, Bar, Line, bars, histogram, lines, smoothed
from fairway.report.routing import routing

REPORT = "report.html"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run's folder and returns its path; raises `ConfigError` where it is no run."""
    path = Path(folder) / REPORT
    write_text(path, render(Path(folder)))
    return path


def render(folder: Path) -> str:
    """The page as text."""
    if not (folder / "recipe.yaml").exists():
        raise ConfigError(f"{folder} is not a run folder: it holds no recipe.yaml.")
    recipe = read_yaml(folder / "recipe.yaml")
    summary, score = _optional(folder / "summary.json"), _optional(folder / "score.json")
    records = read_journal(folder / "metrics.jsonl")
    artifact = folder / "model.fwy"
    contents = anatomy(artifact) if artifact.exists() else None
    sample = folder / "sample.txt"
    return _ENVIRONMENT.get_template("page.html.j2").render(
        title=str(recipe.get("name", folder.name)),
        subtitle=_subtitle(folder, summary),
        tiles=_tiles(recipe, summary, score),
        charts=_curves(records, score),
        routing=_routing(records),
        seconds=_seconds(_optional(folder / "ledger.json")),
        sizes=_sizes(contents),
        proof=_proof(score),
        gates=_gates(score),
        score=_flat(score),
        sample=sample.read_text(encoding="utf-8") if sample.exists() else "",
        weights=_weights(artifact, contents),
        tensor_columns=("tensor", "shape", "bytes", "bits/weight", "entropy", "overhead", "zeros"),
        tensors=_tensors(contents),
        summary=_block(
            "The run", {key: value for key, value in summary.items() if key not in ("machine", "run", "artifact")}
        ),
        machine=_block("The machine", summary.get("machine") or {}),
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
    )


def _optional(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _subtitle(folder: Path, summary: Mapping[str, Any]) -> str:
    fingerprint = str(summary.get("fingerprint", ""))[:12]
    return f"{folder.name} · recipe {fingerprint}" if fingerprint else f"{folder.name} · not finished"


def _tiles(recipe: Mapping[str, Any], summary: Mapping[str, Any], score: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not summary:
        return []
    budget = recipe.get("budget") or {}
    allowed = budget.get("seconds") if budget.get("steps") is None else None
    size, cap, seconds = summary["bytes"], summary["bytes_cap"], summary["seconds_train"]
    scored = score.get("bytes")
    documents = score.get("documents")
    told = f"on {show_bytes(scored)} of unseen text" if isinstance(scored, (int, float)) else "on unseen text"
    if isinstance(documents, int):
        told += f", {documents:,} document{'' if documents == 1 else 's'}"
    return [
        _tile("bits per byte", f"{summary['bits_per_byte']:.4f}", told),
        _tile("artifact", show_bytes(size), f"{size:,} of {cap:,} bytes", size / cap),
        _tile(
            "training",
            show_seconds(seconds),
            f"of {show_seconds(allowed)}" if allowed else f"{summary.get('steps', 0):,} steps, fixed",
            seconds / allowed if allowed else None,
        ),
        _tile("parameters", _short(summary.get("parameters", 0)), f"{_short(summary.get('tokens', 0))} tokens seen"),
    ]


def _tile(name: str, value: str, note: str, share: float | None = None) -> dict[str, Any]:
    return {"name": name, "value": value, "note": note, "share": share}


def _curves(records: list[dict[str, Any]], score: Mapping[str, Any]) -> list[dict[str, Any]]:
    time = "elapsed" if any("elapsed" in record for record in records) else "seconds"
    bpb = [
        smoothed("training", *_series(records, time, "train/bpb")),
        Line("validation", *_series(records, time, "val/bpb"), dots=True),
        Line("validation, looking ahead", *_series(records, time, "val/bpb_ahead"), dots=True),
    ]
    final = score.get("bits_per_byte")
    marks = [(float(final), f"artifact {final:.4f}")] if isinstance(final, (int, float)) else []
    loss = [smoothed("loss", *_series(records, time, "train/loss"))]
    pace = [smoothed("tokens/s", *_pace(records, time))]
    x = "seconds of training"
    loss_chart = lines("Training loss over time", loss, x, "nats per token", width=HALF)
    pace_chart = lines("Tokens per second over time", pace, x, "tokens per second", width=HALF, from_zero=True)
    charts = [
        (
            "Bits per byte",
            lines("Bits per byte over time", bpb, x, "bits per byte", marks=marks),
            "Training is smoothed.",
        ),
        ("Training loss", loss_chart, "Smoothed."),
        ("Pace", pace_chart, "Smoothed."),
    ]
    return [_figure(title, svg, caption) for title, svg, caption in charts if svg]


def _routing(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    found = routing(records, "elapsed")
    if not found.rows:
        return None
    charts = [_figure(title, svg, caption) for title, svg, caption in found.charts]
    return {"columns": found.columns, "rows": found.rows, "charts": charts}


def _series(records: list[dict[str, Any]], time: str, name: str) -> tuple[list[float], list[float]]:
    found = [(record[time], record[name]) for record in records if name in record and time in record]
    return [float(x) for x, _ in found], [float(y) for _, y in found]


def _pace(records: list[dict[str, Any]], time: str) -> tuple[list[float], list[float]]:
    if any("tokens/s" in record for record in records):
        return _series(records, time, "tokens/s")
    timed = [record for record in records if record.get("step_seconds") and "tokens" in record and time in record]
    return [record[time] for record in timed], [record["tokens"] / record["step_seconds"] for record in timed]


def _seconds(ledger: Mapping[str, Any]) -> dict[str, Any] | None:
    phases = {
        name: float(value) for name, value in ledger.items() if isinstance(value, (int, float)) and value >= 0.005
    }
    total = sum(phases.values())
    ordered = sorted(phases.items(), key=lambda item: -item[1])
    items = [Bar(name, value, f"{show_seconds(value)} · {100 * value / total:.1f} %") for name, value in ordered]
    svg = bars("Seconds by phase", items)
    return _figure("Where the seconds went", svg, f"{show_seconds(total)} in all.") if svg else None


def _sizes(contents: Anatomy | None) -> dict[str, Any] | None:
    if contents is None:
        return None
    ordered = sorted(contents.groups.items(), key=lambda item: -item[1])
    items = [Bar(name, size, f"{show_bytes(size)} · {100 * size / contents.bytes:.1f} %", 1) for name, size in ordered]
    caption = f"{contents.bytes:,} bytes, {contents.bits_per_parameter:.2f} bits a parameter with everything counted."
    return _figure("Where the bytes went", bars("Bytes by group", items), caption)


def _figure(title: str, svg: str, caption: str) -> dict[str, Any]:
    return {"title": title, "svg": Markup(svg), "caption": caption}


def _proof(score: Mapping[str, Any]) -> str:
    if not {"bits", "bytes"} <= set(score) and not {"nats", "bytes"} <= set(score):
        return ""
    bits = score["bits"] if "bits" in score else score["nats"] / math.log(2)
    return (
        f"{bits:,.0f} bits for {score['bytes']:,} bytes of raw text = {bits / score['bytes']:.4f} bits per byte, "
        "measured from the artifact file alone, in a process of its own."
    )


def _gates(score: Mapping[str, Any]) -> list[dict[str, str]]:
    verdicts = {True: ("pass", "✓ passed"), False: ("fail", "✗ failed"), None: ("dim", "– not asked")}
    rows = []
    for gate in score.get("gates") or ():
        style, verdict = verdicts[gate["passed"]]
        rows.append({"style": style, "verdict": verdict, "name": _words(gate["name"]), "detail": gate["detail"]})
    return rows


def _flat(value: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{path}.{key}" if path else str(key)
        if name == "gates":
            continue
        rows += _flat(inner, name) if isinstance(inner, Mapping) else [(name, _shown(inner))]
    return rows


def _weights(artifact: Path, contents: Anatomy | None) -> list[dict[str, Any]]:
    if contents is None:
        return []
    figures = []
    for part, weights in weights_by_part(artifact).items():
        caption = f"{weights.count:,} weights, σ {weights.deviation:.3g}, {100 * weights.zeros:.1f} % zero"
        figures.append(_figure(part, histogram(f"Weights of {part}", weights.spread), caption))
    return figures


def _tensors(contents: Anatomy | None) -> list[tuple[str, ...]]:
    if contents is None:
        return []
    return [
        (
            tensor.name,
            " × ".join(map(str, tensor.shape)),
            f"{tensor.bytes:,.0f}",
            f"{tensor.bits_per_weight:.3f}",
            f"{tensor.entropy:.3f}",
            f"{100 * tensor.overhead:.2f} %",
            f"{100 * tensor.zeros:.1f} %",
        )
        for tensor in contents.tensors
    ]


def _block(title: str, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    rows = [
        (_words(key), show_bytes(value) if key.endswith("_bytes") else _shown(value)) for key, value in facts.items()
    ]
    return {"title": title, "rows": rows} if rows else None


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.6g}"
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return ", ".join(_shown(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def _short(count: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
