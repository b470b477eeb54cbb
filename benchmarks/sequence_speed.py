"""Sequence layers on the CPU: training steps, cost against length, memory, decoding, and a whole Mamba model.

`python benchmarks/sequence_speed.py [PART ...] [--kinds mamba gla] [--contexts 512 2048] [--threads 1] [--rounds 5]`.
Parts, all by default, with what they take on one core:

* `layer`: forward and backward of one layer, width 256, batch 4, with native kernels, with PyTorch alone, and by other
  libraries with the same weights, as installed and with the allocator's and oneDNN's settings of a run. A rate stands
  only where outputs and gradients by the input agree. 7 minutes with `--contexts 512`, 11 with `--contexts 2048`.
* `length`: tokens a second at equal tokens a step, from context 512 to 8,192, over that at 512. 8 minutes.
* `memory`: most bytes of tensors alive in a training step against length, over those of input, output and their
  gradients; plain, and with the sequence computed again in pieces. 3 minutes.
* `decode`: seconds and bytes of state a token against context, from 1,024 to 65,536. 4 minutes.
* `model`: the training step of a Mamba model of 6 layers, width 192, vocabulary 1,024, beside mambapy's. 2 minutes.

A part measured in several commands keeps the rows that a command does not measure again.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import pairs
import sequence_parts as parts
from peers.sequence_layers import installed

from fairway.core.probe import machine, versions
from fairway.core.storage import read_json, write_json
from report import RESULTS

KINDS = (
    "attention", "mamba", "mamba2", "retnet", "rwkv4", "gla", "linear_attention", "delta", "gated_delta", "ttt_linear",
    "ttt_mlp",
)  # fmt: skip
PARTS = ("layer", "length", "memory", "decode", "model")
AGREE = 1e-3
LENGTHS = (512, 1_024, 2_048, 4_096, 8_192)
DECODED = (1_024, 4_096, 16_384, 65_536)
PATIENCE = 20.0
"""Seconds after which a contender is given no more turns."""
FAR_BEHIND = 20.0
"""A peer so many times slower than native at a context is not asked about longer ones."""
PIECES = dict.fromkeys(("mamba", "mamba2", "retnet", "ttt_mlp"), 64)
"""Tokens of a piece in `memory`, where not 128: what these mixers keep of a token is most."""
KEYS = ("context", "mixer", "by", "pieces of")
"""What tells the rows of a table apart."""

Table = list[dict[str, Any]]


def raced(chosen: argparse.Namespace, jobs: dict[str, dict[str, Any]]) -> dict[str, pairs.Measured]:
    """Runs jobs in processes of their own, taking turns."""
    own = [__file__, "--threads", str(chosen.threads), "--contend"]
    commands = {name: [*own, json.dumps(job)] for name, job in jobs.items()}
    return pairs.measure(commands, chosen.rounds, chosen.threads, patience=PATIENCE)


def against(job: dict[str, Any], peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A job with native kernels, with PyTorch alone, and by each peer as installed and with our settings."""
    jobs = {"native": job, "torch": {**job, "native": False}}
    for name in peers:
        jobs |= {name: {**job, "peer": name}, f"{name} + settings": {**job, "peer": name, "settings": True}}
    return jobs


def layer(chosen: argparse.Namespace) -> Table:
    """One layer's training step at each context."""
    table: Table = []
    for kind in chosen.kinds:
        peers = installed(kind)
        for context in sorted(chosen.contexts):
            job = {"what": "layer", "kind": kind, "context": context, "batch": chosen.batch}
            measured = raced(chosen, against(job, peers))
            own = seconds(measured["native"], chosen.threads)
            for name, value in measured.items():
                agrees = value.facts["error"] < AGREE
                took = seconds(value, chosen.threads)
                table.append({
                    "context": context, "mixer": kind, "by": name,
                    "tokens/s": chosen.batch * context / took if agrees else None,
                    "native is faster": took / own if agrees and measured["native"].facts["error"] < AGREE else None,
                    "error": value.facts["error"], "spread": value.spread, "rounds": value.rounds,
                })  # fmt: skip
            peers = [name for name in peers if seconds(measured[name], chosen.threads) < FAR_BEHIND * own]
    return table


def length(chosen: argparse.Namespace) -> Table:
    """Tokens a second of a training step at the same number of tokens in sequences of growing length."""
    table: Table = []
    longest = [context for context in LENGTHS if context <= chosen.longest]
    for kind in chosen.kinds:
        jobs = {
            str(context): {"what": "layer", "kind": kind, "context": context, "batch": longest[-1] // context}
            for context in longest
        }
        measured = raced(chosen, jobs)
        rates = {context: longest[-1] / seconds(measured[str(context)], chosen.threads) for context in longest}
        for context, rate in rates.items():
            table.append(
                {"mixer": kind, "context": context, "tokens/s": rate, "over the first": rate / rates[longest[0]]}
            )
    return table


def memory(chosen: argparse.Namespace) -> Table:
    """Most memory of one layer's training step over the bytes of its input and output and their gradients."""
    contexts = [context for context in LENGTHS if context <= chosen.longest]
    table: Table = []
    for kind in chosen.kinds:
        for found in parts.alone("peaks", kind=kind, contexts=contexts, pieces=[None, PIECES.get(kind, 128)]):
            ends = 4 * 4 * found["context"] * parts.WIDTH
            table.append({
                "mixer": kind, "context": found["context"], "pieces of": found["piece"] or "-",
                "MB": found["live"] / 1e6, "over inputs and outputs": found["live"] / ends,
            })  # fmt: skip
    return table


def decode(chosen: argparse.Namespace) -> Table:
    """One token after a context, batch 1: seconds, and bytes of state, which must be the technique card's."""
    contexts = [context for context in DECODED if context <= chosen.farthest]
    windowed = ["windowed attention"] if "attention" in chosen.kinds else []
    table: Table = []
    for kind in (*chosen.kinds, *windowed):
        measured = parts.alone("decoded", kind=kind, contexts=contexts)
        for found in measured:
            assert found["bytes"] == found["card"], f"{kind}: {found} bytes of state, and on the card"
            over = found["seconds"] / measured[0]["seconds"]
            table.append({
                "mixer": kind, "context": found["context"], "us/token": found["seconds"] * 1e6,
                "over the first": over, "bytes of state": found["bytes"],
            })  # fmt: skip
    return table


def model(chosen: argparse.Namespace) -> Table:
    """Whole training steps of the same Mamba language model; a rate stands only where losses agree."""
    job = {"what": "model", "context": chosen.contexts[0], "batch": chosen.batch}
    measured = raced(chosen, against(job, [name for name in installed("mamba") if name == "mambapy"]))
    first = measured["native"].facts["loss"]
    table: Table = []
    for name, value in measured.items():
        agrees = abs(value.facts["loss"] - first) < AGREE * first
        took = seconds(value, chosen.threads)
        table.append({
            "by": name, "tokens/s": chosen.batch * job["context"] / took if agrees else None,
            "native is faster": took / seconds(measured["native"], chosen.threads) if agrees else None,
            "loss": value.facts["loss"], "spread": value.spread, "rounds": value.rounds,
        })  # fmt: skip
    return table


def seconds(value: pairs.Measured, threads: int) -> float:
    return value.cpu if threads == 1 else value.wall


def contend(job: dict[str, Any], threads: int) -> None:
    """One contender's process."""
    from fairway.core.device import keep_freed_memory, route_float32_products

    torch.set_num_threads(threads)
    os.environ["FAIRWAY_NATIVE"] = "1" if job.pop("native", "peer" not in job) else "0"
    if "peer" not in job or job.get("settings"):
        keep_freed_memory()
        route_float32_products()
    prepare: Callable[..., tuple[Callable[[], None], dict[str, Any]]] = getattr(parts, f"prepare_{job.pop('what')}")
    job.pop("settings", None)
    pairs.serve(lambda: prepare(**job))


def show(name: str, table: Table) -> Table:
    """Prints a table, and keeps it with the machine and versions it was measured on; gives all that is kept."""
    print(f"\n{name}")
    columns = list(table[0])
    rows = [[_cell(row[column]) for column in columns] for row in table]
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    path, measured_on = RESULTS / f"sequence_{name}.json", {"machine": machine(), "versions": versions()}
    kept: Table = []
    if path.exists() and all((before := read_json(path))[key] == value for key, value in measured_on.items()):
        new = {_key(row) for row in table}
        kept = [row for row in before["table"] if _key(row) not in new and list(row) == sorted(columns)]
    table = sorted(kept + table, key=lambda row: (*_place(row), row.get("context", 0)))
    write_json(path, {**measured_on, "columns": columns, "date": date.today().isoformat(), "table": table})
    return table


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEYS)


def _place(row: dict[str, Any]) -> tuple[int, str]:
    """The mixer's place among all."""
    kind = row.get("mixer", "")
    return KINDS.index(kind) if kind in KINDS else len(KINDS), kind


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return "differs" if value is None else str(value)


def plot(name: str, table: Table, figures: Sequence[str]) -> None:
    """One panel for each figure against the context, a line for each mixer, as SVG beside the JSON.

    Memory over inputs and outputs is drawn in pieces, memory itself without.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    _, axes = pyplot.subplots(1, len(figures), figsize=(6 * len(figures), 4.5), squeeze=False)
    for axis, figure in zip(axes[0], figures, strict=True):
        cut = figure == "over inputs and outputs"
        for number, kind in enumerate(dict.fromkeys(row["mixer"] for row in table)):
            rows = [row for row in table if row["mixer"] == kind and (row.get("pieces of", "-") != "-") == cut]
            points = [(row["context"], row[figure]) for row in rows]
            axis.plot(*zip(*points, strict=True), label=kind, marker="osD^v<>"[number % 7], color=f"C{number % 10}")
        axis.set(xlabel="context", ylabel=figure, title="in pieces" if cut else "", ylim=(0, None))
        axis.set_xscale("log", base=2)
        if figure in ("us/token", "bytes of state", "MB"):
            axis.set_yscale("log")
    axes[0][-1].legend(fontsize="small")
    pyplot.tight_layout()
    pyplot.savefig(RESULTS / f"sequence_{name}.svg")
    pyplot.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--contexts", nargs="*", type=int, default=[512, 2_048])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="of `length` and `memory`")
    parser.add_argument("--farthest", type=int, default=DECODED[-1], help="of `decode`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contend", help="internal: one contender as JSON")
    chosen = parser.parse_args()
    if chosen.contend:
        contend(json.loads(chosen.contend), chosen.threads)
        return
    plots = {
        "length": ["over the first"],
        "memory": ["MB", "over inputs and outputs"],
        "decode": ["us/token", "bytes of state"],
    }
    measures = {"layer": layer, "length": length, "memory": memory, "decode": decode, "model": model}
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)}; there are {', '.join(PARTS)}")
    for name in chosen.parts or PARTS:
        table = show(name, measures[name](chosen))
        if name in plots:
            plot(name, table, plots[name])


if __name__ == "__main__":
    main()
