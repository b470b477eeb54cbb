"""What `tables.py` shows of sequence layers: speed and memory of one layer, whole recipes, synthetic tasks."""

import statistics
from collections.abc import Iterator
from typing import Any

from page_parts import table, where

Rows = list[dict[str, Any]]
CAPTIONS = {
    "length": "Training steps of one layer of width 256, all of as many tokens: tokens a second, and over those at the "
    "shortest context",
    "memory": "A training step of one layer of width 256, batch 1: most bytes of tensors alive, over those of input, "
    "output and both gradients; plain, and computed again in pieces",
    "decode": "One more token after a context, batch 1, one layer of width 256: microseconds, and bytes of state",
}


def layer(record: dict[str, Any]) -> Iterator[str]:
    """One line for each mixer and context: native kernels, PyTorch alone, and the fastest peer that agrees."""
    yield "## sequence layers, training step"
    yield (
        "Tokens a second of forward and backward, one layer of width 256, batch 4, one thread, medians. The peer is "
        "the fastest whose outputs and gradients are those of float64 within a thousandth, as installed or with our "
        f"settings (allocator, oneDNN); {where(record)}"
    )
    lines = []
    groups: dict[tuple[str, int], Rows] = {}
    for row in record["table"]:
        groups.setdefault((row["mixer"], row["context"]), []).append(row)
    for (mixer, context), rows in groups.items():
        rates = {row["by"]: row["tokens/s"] for row in rows}
        native, plain = rates.pop("native"), rates.pop("torch", None)
        peers = {name: rate for name, rate in rates.items() if rate is not None}
        best = max(peers, key=lambda name: peers[name], default=None)
        installed = max((peers[name] for name in peers if name != best and not name.endswith("settings")), default=None)
        if best is not None and not best.endswith("settings"):
            installed = peers[best]
        lines.append([
            mixer, context, native, plain, best or "", peers[best] if best else "", installed or "",
            native / peers[best] if best and native else "", plain / peers[best] if best and plain else "",
        ])  # fmt: skip
    columns = (
        "mixer", "context", "native", "PyTorch alone", "best peer", "its rate", "best as installed",
        "native over it", "PyTorch alone over it",
    )  # fmt: skip
    yield table(columns, lines)


def against_context(part: str, record: dict[str, Any], figures: list[str]) -> Iterator[str]:
    """A table for each figure: mixers down, contexts across."""
    yield f"## sequence layers, {part}"
    yield f"{CAPTIONS[part]}; {where(record)}"
    for figure in figures:
        contexts = sorted({row["context"] for row in record["table"]})
        lines: dict[tuple[Any, ...], dict[int, Any]] = {}
        for row in record["table"]:
            key = (row["mixer"], row["pieces of"]) if "pieces of" in row else (row["mixer"],)
            lines.setdefault(key, {})[row["context"]] = row[figure]
        names = ["mixer", "pieces of"] if "pieces of" in record["table"][0] else ["mixer"]
        shown = [[*key, *(found.get(context, "") for context in contexts)] for key, found in lines.items()]
        yield f"{figure}:"
        yield table([*names, *(f"{context:,}" for context in contexts)], shown)


def quality(record: dict[str, Any]) -> Iterator[str]:
    """Bits per byte of each recipe."""
    settings = record["settings"]
    yield "## sequence recipes, bits per byte"
    yield (
        f"Recipes of equal parameters after {settings['seconds']:.0f} s of training on one thread, compressed to at "
        f"most {settings['cap']:,} bytes, scored from the artifact; {where(record)}"
    )
    lines = []
    for name, runs in record["runs"].items():
        bits = [run["bits_per_byte"] for run in runs]
        steps, rate = (statistics.mean(run[key] for run in runs) for key in ("steps", "tokens_per_second"))
        sigma = f"{statistics.stdev(bits):.4f}" if len(bits) > 1 else ""
        lines.append([name, f"{statistics.mean(bits):.4f}", sigma, len(bits), steps, rate, runs[0]["parameters"]])
    yield table(
        ("recipe", "bits per byte", "sigma", "n", "steps", "tokens/s", "parameters"), sorted(lines, key=lambda x: x[1])
    )


def tasks(record: dict[str, Any]) -> Iterator[str]:
    """Accuracy of each mixer on each task."""
    settings, runs = record["settings"], record["runs"]
    yield "## sequence layers, synthetic tasks"
    yield (
        f"Share of right answers on unseen examples after {settings['seconds']:.0f} s of training of two layers of "
        f"width {settings['width']} on one thread, mean and deviation over the seeds; {where(record)}"
    )
    names = list(dict.fromkeys(run["task"] for run in runs))
    lines = []
    for mixer in dict.fromkeys(run["mixer"] for run in runs):
        cells = []
        for name in names:
            found = [run["accuracy"] for run in runs if (run["task"], run["mixer"]) == (name, mixer)]
            spread = f" ± {statistics.stdev(found):.3f} (n = {len(found)})" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.3f}{spread}" if found else "")
        lines.append([mixer, *cells])
    yield table(("mixer", *names), lines)


def section(stem: str, record: dict[str, Any]) -> Iterator[str]:
    """What the page says of one of these results; nothing of any other."""
    if stem == "sequence_layer":
        yield from layer(record)
    elif stem == "sequence_length":
        yield from against_context("length", record, ["tokens/s", "over the first"])
    elif stem == "sequence_memory":
        yield from against_context("memory", record, ["over inputs and outputs"])
    elif stem == "sequence_decode":
        yield from against_context("decode", record, ["us/token", "over the first", "bytes of state"])
    elif stem == "sequence_quality":
        yield from quality(record)
    elif stem == "synthetic_tasks":
        yield from tasks(record)
