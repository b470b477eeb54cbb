"""Bits per byte against bytes: one trained run, every method of compression, from 30 % to 100 % of its size.

The size that counts as 100 % is that of rounding to nearest at the finest step. Every point is a real file, scored on
a text that the model was not trained on; points within one run are comparable, others are not.

Usage: python benchmarks/compression.py RUN TEXT [--percents 30,40,...] [--methods rtn,gptq,...] [--bytes 20000]
Writes benchmarks/results/compression.{json,md,svg}, or to --folder.
"""

import argparse
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
    "structured + gptq": {"prune": {"kind": "structured"}, "quantize": "gptq"},
    "heads + gptq": {"prune": {"kind": "heads"}, "quantize": "gptq"},
    "deep compression": {
        "prune": {"kind": "magnitude", **HALF},
        "quantize": {"kind": "kmeans", "layout": "sparse"},
        "coder": "huffman",
    },
}


def measured(run: Run, text: bytes, methods: list[str], percents: list[int]) -> list[dict[str, Any]]:
    """One row for each method and size; a method that does not fit a size has no score there."""
    model, _ = run.trained(silent)
    manifest = run.prepare(silent)
    sequences, context = run.recipe.compress.calibration_sequences, run.recipe.model.context
    calibration = list(Batches(manifest, run.recipe.seed).at(0, sequences, context).tokens_BT[:, :-1].split(16))
    tokenizer, rows = manifest.tokenizer, []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.fwy"

        def size_and_score(settings: dict[str, Any], cap: int) -> tuple[int, float]:
            config = CompressConfig.read(settings)
            fit = compress_model(model, tokenizer.kind, tokenizer.save(), config, cap, path, {}, calibration)
            return fit.bytes, fairway.load(path).score(text).bits_per_byte

        whole, best = size_and_score({"quantize": "rtn"}, 1 << 31)
        rows.append({"method": "finest", "percent": 100, "cap": whole, "bytes": whole, "bits_per_byte": best})
        for method in methods:
            for percent in percents:
                cap = whole * percent // 100
                row: dict[str, Any] = {"method": method, "percent": percent, "cap": cap}
                try:
                    row["bytes"], row["bits_per_byte"] = size_and_score(METHODS[method], cap)
                except BudgetError:
                    row["bytes"] = row["bits_per_byte"] = None
                rows.append(row)
                print(row, flush=True)
    return rows


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
    parser.add_argument("text", type=Path)
    parser.add_argument("--percents", default="30,40,50,60,70,80,90,100")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--bytes", type=int, default=20_000, help="of the text to score")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args()
    percents = [int(percent) for percent in given.percents.split(",")]
    text = given.text.read_bytes()[: given.bytes]
    rows = measured(Run.open(given.run), text, given.methods.split(","), percents)
    write_json(given.folder / "compression.json", {"rows": rows, "machine": machine(), "versions": versions()})
    write_text(given.folder / "compression.md", table(rows, percents))
    curves = []
    for method in given.methods.split(","):
        points = [row for row in rows if row["method"] == method and row["bytes"] is not None]
        if points:
            points.sort(key=lambda row: row["bytes"])
            sizes, scores = [row["bytes"] for row in points], [row["bits_per_byte"] for row in points]
            curves.append(Line(method, sizes, scores, dots=True))
    drawing = lines("Bits per byte against bytes", curves, "bytes", "bits per byte")
    write_text(given.folder / "compression.svg", standing_alone(drawing))


if __name__ == "__main__":
    main()
