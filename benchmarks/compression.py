"""Bits per byte against bytes: one trained run, every method of compression, from 30 % to 100 % of its size.

The size that counts as 100 % is that of rounding to nearest at the finest step. Every point is a real file, scored on
text that the model was not trained on (the run's own validation text if none is given); points within one run are
comparable, others are not. QAT acts in training: give a run trained with it by `--qat`, of the same model and data.

Usage: python benchmarks/compression.py RUN [TEXT] [--qat RUN] [--percents 30,50,...] [--methods rtn,gptq,...]
Every measured point is kept in runs/compression, where the same command goes on from; several commands with different
`--methods` share the work, and each writes benchmarks/results/compression.{json,md,svg} (or to --folder) of all points
that are there. `--bytes` of text are scored. About twelve minutes on one thread for the default run.
"""

import argparse
import hashlib
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fairway
from fairway.compress.fit import compress_model
from fairway.compress.plan import CompressConfig
from fairway.core.device import keep_freed_memory
from fairway.core.errors import BudgetError, ConfigError
from fairway.core.log import silent
from fairway.core.probe import machine, versions
from fairway.core.storage import read_json, write_json, write_text
from fairway.report.chart import Line, lines, standing_alone
from fairway.run import Run
from report import RESULTS

HALF = {"sparsity": 0.5}
FINEST = "finest"
"""Rounding to nearest at the finest step worth storing: the size that counts as 100 %."""
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
POINTS = Path(__file__).parents[1] / "runs" / "compression"
ROOM = 1 << 31
"""A cap that is never met."""

Row = dict[str, Any]


@dataclass
class Compressor:
    """Compresses one trained run in any way to any size, and scores the file; what was measured once is kept."""

    folder: Path
    text: bytes

    @cached_property
    def run(self) -> Run:
        return Run.open(self.folder)

    @cached_property
    def _inputs(self) -> tuple[Any, ...]:
        model, _ = self.run.trained(silent)
        manifest = self.run.prepare(silent)
        return model, manifest.tokenizer, [ids_BT[:, :-1] for ids_BT in self.run.calibration(manifest)]

    def measured(self, method: str, percent: int, cap: int, points: Path) -> Row:
        """One point; without a size and a score where the method does not fit the cap or the model."""
        place = self.place(method, cap, points)
        if place.exists():
            return read_json(place) | {"percent": percent}
        row: Row = {"method": method, "percent": percent, "cap": cap, "bytes": None, "bits_per_byte": None}
        start = time.process_time()
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.fwy"
            try:
                row["bytes"], row["predicted_bytes"] = self._compress(METHODS.get(method, {}), cap, path)
                row["seconds"] = time.process_time() - start
                row["bits_per_byte"] = fairway.load(path).score(self.text).bits_per_byte
            except (BudgetError, ConfigError) as error:
                row["seconds"], row["why"] = time.process_time() - start, str(error)
        write_json(place, row)
        return row

    def place(self, method: str, cap: int, points: Path) -> Path:
        """Where a point is kept: by everything that it follows from, but for Fairway's own code."""
        weights = [path.name for path in sorted((self.folder / "checkpoints").iterdir())]
        parts = [self.run.recipe.fingerprint(), weights, METHODS.get(method, {}), cap, self.text.hex()]
        return points / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}.json"

    def _compress(self, settings: dict[str, Any], cap: int, path: Path) -> tuple[int, int]:
        model, tokenizer, calibration = self._inputs
        config = CompressConfig.read(settings)
        fit = compress_model(model, tokenizer.kind, tokenizer.save(), config, cap, path, {}, calibration)
        return fit.bytes, fit.predicted_bytes


def table(rows: list[Row], percents: list[int]) -> str:
    """Markdown: a line for each method, a column for each size; beside files that leave room, their own size."""
    found = {(row["method"], row["percent"]): row for row in rows}
    whole = next(row["bytes"] for row in rows if row["method"] == FINEST)

    def cell(method: str, percent: int) -> str:
        row = found.get((method, percent))
        if row is None or row["bytes"] is None:
            return "" if row is None else "-"
        full = row["bytes"] >= 0.995 * row["cap"]
        return f"{row['bits_per_byte']:.4f}" + ("" if full else f" ({100 * row['bytes'] / whole:.0f} %)")

    out = [
        "| method | " + " | ".join(f"{percent} %" for percent in percents) + " |",
        "|---" * (len(percents) + 1) + "|",
    ]
    methods = dict.fromkeys(row["method"] for row in rows if row["method"] != FINEST)
    out += [f"| {name} | " + " | ".join(cell(name, percent) for percent in percents) + " |" for name in methods]
    return "\n".join(out) + "\n"


def curves(rows: list[Row]) -> list[Line]:
    """A curve for each method, over the sizes of its real files."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != FINEST):
        points = sorted(
            {(row["bytes"], row["bits_per_byte"]) for row in rows if row["method"] == method and row["bytes"]}
        )
        if points:
            found.append(Line(method, [size for size, _ in points], [score for _, score in points], dots=True))
    return found


def write(rows: list[Row], percents: list[int], folder: Path, about: dict[str, Any]) -> None:
    """Figures, table and drawing of all points."""
    record = {"rows": rows, "about": about, "machine": machine(), "versions": versions()}
    write_json(folder / "compression.json", record)
    write_text(folder / "compression.md", table(rows, percents))
    drawing = lines("Bits per byte against bytes", curves(rows), "bytes", "bits per byte")
    write_text(folder / "compression.svg", standing_alone(drawing))


def main() -> None:
    """Measures what is missing and writes table, drawing and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--qat", type=Path, help="a run trained with compress.quantize.kind=qat")
    parser.add_argument("--percents", default="30,50,75,100")
    parser.add_argument("--methods", default=",".join((*METHODS, QAT)))
    parser.add_argument("--bytes", type=int, default=60_000, help="of the text to score")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    parser.add_argument("--points", type=Path, default=POINTS, help="where measured points are kept")
    given = parser.parse_args()
    keep_freed_memory()
    percents = [int(percent) for percent in given.percents.split(",")]
    unknown = set(given.methods.split(",")) - {*METHODS, QAT}
    if unknown:
        parser.error(f"unknown methods {', '.join(sorted(unknown))}; there are {', '.join((*METHODS, QAT))}")
    text = (given.text or Run.open(given.run).data / "validation.bin").read_bytes()[: given.bytes]
    plain = Compressor(given.run, text)
    sources = dict.fromkeys(METHODS, plain) | ({QAT: Compressor(given.qat, text)} if given.qat else {})
    first = plain.measured(FINEST, 100, ROOM, given.points)
    points = [(method, percent, first["bytes"] * percent // 100) for method in sources for percent in percents]
    mine = [point for point in points if point[0] in given.methods.split(",")]
    start = time.perf_counter()
    for done, (method, percent, cap) in enumerate(mine, 1):
        row = sources[method].measured(method, percent, cap, given.points)
        left = (time.perf_counter() - start) / done * (len(mine) - done) / 60
        score = f"{row['bytes']:,} bytes, {row['bits_per_byte']:.4f} bpb" if row["bytes"] else row["why"]
        print(
            f"{done}/{len(mine)}  {method} {percent} %: {score}, {row['seconds']:.1f} s; {left:.0f} min left",
            flush=True,
        )
        there = [point for point in points if sources[point[0]].place(point[0], point[2], given.points).exists()]
        rows = [first, *(sources[name].measured(name, share, cap, given.points) for name, share, cap in there)]
        write(rows, percents, given.folder, {"run": plain.run.recipe.fingerprint(), "text_bytes": len(text)})


if __name__ == "__main__":
    main()
