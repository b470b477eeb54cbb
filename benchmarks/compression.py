"""Bits per byte against bytes: one trained run, every method of compression, from 30 % to 100 % of its size.

The size that counts as 100 % is that of rounding to nearest at the finest step. Every point is a real file, scored on
text that the model was not trained on (the run's own validation text if none is given); points within one run are
comparable, others are not. QAT acts in training: give a run trained with it by `--qat`, of the same model and data.

Usage: python benchmarks/compression.py RUN [TEXT] [--qat RUN] [--percents 30,40,...] [--methods rtn,gptq,...]
Writes benchmarks/results/compression.{json,md,svg}, or to --folder. About fifteen minutes.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fairway
from fairway.compress.fit import compress_model
from fairway.compress.plan import CompressConfig
from fairway.core.errors import BudgetError
from fairway.core.log import silent
from fairway.core.probe import machine, versions
from fairway.core.storage import write_json, write_text
from fairway.data.batches import Batches
from fairway.report.chart import Line, lines, standing_alone
from fairway.run import Run
from report import RESULTS

HALF = {"sparsity": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"quantize": "rtn"},
    "gptq": {"quantize": "gptq"},
    "trellis": {"quantize": "trellis"},
    "trellis by factors": {"quantize": "trellis", "sensitivity": "kronecker"},
    "kmeans": {"quantize": "kmeans"},
    "nf4": {"quantize": "nf4"},
    "lqer": {"quantize": "lqer"},
    "ternary": {"quantize": "ternary"},
    "binary": {"quantize": "binary"},
    "rtn by sensitivity": {"quantize": "rtn", "sensitivity": "fisher"},
    "gptq by sensitivity": {"quantize": "gptq", "sensitivity": "fisher"},
    "magnitude + rtn": {"prune": {"kind": "magnitude", **HALF}, "quantize": "rtn"},
    "obd + rtn": {"prune": {"kind": "obd", **HALF}, "quantize": "rtn"},
    "obs + rtn": {"prune": {"kind": "obs", **HALF}, "quantize": "rtn"},
    "taylor + rtn": {"prune": {"kind": "taylor", **HALF}, "quantize": "rtn"},
    "wanda + rtn": {"prune": {"kind": "wanda", **HALF}, "quantize": "rtn"},
    "sparsegpt + rtn": {"prune": {"kind": "sparsegpt", **HALF}, "quantize": "rtn"},
    "wanda + gptq": {"prune": {"kind": "wanda", **HALF}, "quantize": "gptq"},
    "sparsegpt + gptq": {"prune": {"kind": "sparsegpt", **HALF}, "quantize": "gptq"},
    "sparsegpt + trellis": {
        "prune": {"kind": "sparsegpt", "sparsity": 0.3},
        "quantize": "trellis",
        "sensitivity": "kronecker",
    },
    "structured + gptq": {"prune": {"kind": "structured"}, "quantize": "gptq"},
    "fewer heads + gptq": {"prune": {"kind": "structured", "unit": "heads"}, "quantize": "gptq"},
    "narrower + gptq": {"prune": {"kind": "structured", "unit": "width"}, "quantize": "gptq"},
    "fewer blocks + gptq": {"prune": {"kind": "structured", "unit": "blocks"}, "quantize": "gptq"},
    "heads + gptq": {"prune": {"kind": "heads"}, "quantize": "gptq"},
    "deep compression": {
        "prune": {"kind": "magnitude", **HALF},
        "quantize": {"kind": "kmeans", "layout": "sparse"},
        "coder": "huffman",
    },
}
QAT = "qat"
"""Rounding to nearest of a run that was trained with it."""


def measured(run: Run, qat: Run | None, text: bytes, methods: list[str], percents: list[int]) -> list[dict[str, Any]]:
    """One row for each method and size; a method that does not fit a size has no score there."""
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.fwy"
        plain = compressor(run, path, text)
        whole, best, seconds = plain({"quantize": "rtn"}, 1 << 31)
        first = {"method": "finest", "percent": 100, "cap": whole, "bytes": whole}
        rows.append({**first, "bits_per_byte": best, "seconds": seconds})
        for method in [*methods, *([QAT] if qat else [])]:
            each = compressor(qat, path, text) if method == QAT and qat else plain
            for percent in percents:
                cap = whole * percent // 100
                row: dict[str, Any] = {"method": method, "percent": percent, "cap": cap}
                try:
                    row["bytes"], row["bits_per_byte"], row["seconds"] = each(METHODS.get(method, {}), cap)
                except BudgetError:
                    row["bytes"] = row["bits_per_byte"] = row["seconds"] = None
                rows.append(row)
                print(row, flush=True)
    return rows


def compressor(run: Run, path: Path, text: bytes) -> Callable[[dict[str, Any], int], tuple[int, float, float]]:
    """What gives bytes, bits per byte and seconds of a way to compress a run under a cap."""
    model, _ = run.trained(silent)
    manifest = run.prepare(silent)
    sequences, context = run.recipe.compress.calibration_sequences, run.recipe.model.context
    calibration = list(Batches(manifest, run.recipe.seed).at(0, sequences, context).tokens_BT[:, :-1].split(16))
    tokenizer = manifest.tokenizer

    def once(settings: dict[str, Any], cap: int) -> tuple[int, float, float]:
        start = time.perf_counter()
        config = CompressConfig.read(settings)
        fit = compress_model(model, tokenizer.kind, tokenizer.save(), config, cap, path, {}, calibration)
        seconds = time.perf_counter() - start
        return fit.bytes, fairway.load(path).score(text).bits_per_byte, seconds

    return once


def table(rows: list[dict[str, Any]], percents: list[int]) -> str:
    """Markdown: a line for each method, a column for each size."""
    found = {(row["method"], row["percent"]): row["bits_per_byte"] for row in rows}
    out = [
        "| method | " + " | ".join(f"{percent} %" for percent in percents) + " |",
        "|---" * (len(percents) + 1) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "finest"):
        cells = [found.get((method, percent)) for percent in percents]
        out.append(f"| {method} | " + " | ".join("-" if cell is None else f"{cell:.4f}" for cell in cells) + " |")
    return "\n".join(out) + "\n"


def main() -> None:
    """Measures and writes table, drawing and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--qat", type=Path, help="a run trained with compress.quantize.kind=qat")
    parser.add_argument("--percents", default="30,40,50,60,70,80,90,100")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--bytes", type=int, default=20_000, help="of the text to score")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args()
    percents = [int(percent) for percent in given.percents.split(",")]
    run = Run.open(given.run)
    text = (given.text or run.data / "validation.bin").read_bytes()[: given.bytes]
    qat = Run.open(given.qat) if given.qat else None
    rows = measured(run, qat, text, given.methods.split(","), percents)
    write_json(given.folder / "compression.json", {"rows": rows, "machine": machine(), "versions": versions()})
    write_text(given.folder / "compression.md", table(rows, percents))
    curves = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "finest"):
        points = [row for row in rows if row["method"] == method and row["bytes"] is not None]
        if points:
            points.sort(key=lambda row: row["bytes"])
            sizes, scores = [row["bytes"] for row in points], [row["bits_per_byte"] for row in points]
            curves.append(Line(method, sizes, scores, dots=True))
    drawing = lines("Bits per byte against bytes", curves, "bytes", "bits per byte")
    write_text(given.folder / "compression.svg", standing_alone(drawing))


if __name__ == "__main__":
    main()
