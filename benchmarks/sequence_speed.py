"""Sequence layers on the CPU: training steps, cost against length, memory, decoding, and a whole Mamba model.

`python benchmarks/sequence_speed.py [PART ...] [--kinds mamba gla] [--contexts 512 2048] [--threads 1] [--rounds 5]`.
Parts, all by default:

* `layer`: forward and backward of one layer, width 256, batch 4, with native kernels, with PyTorch alone, and by other
  libraries with the same weights. A rate stands only where outputs and gradients by the input agree.
* `length`: tokens a second at equal tokens a step, from context 512 to 8,192, over that at 512.
* `memory`: peak memory of a training step against length; plain, and with the sequence computed again in pieces. The
  tensors alive, over the bytes of input, output and their gradients; and what the process grew by.
* `decode`: seconds and bytes of state a token against context, from 1,024 to 65,536.
* `model`: the training step of a Mamba model of 6 layers, width 192, vocabulary 1,024, beside mambapy's.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import pairs
import sequence_parts as parts
from peers.sequence_layers import PEERS

from fairway.core.probe import machine, versions
from fairway.core.storage import write_json
from report import RESULTS

KINDS = (
    "attention", "mamba", "mamba2", "retnet", "rwkv4", "gla", "linear_attention", "delta", "gated_delta", "ttt_linear",
    "ttt_mlp",
)  # fmt: skip
PARTS = ("layer", "length", "memory", "decode", "model")
AGREE = 1e-3
LENGTHS = (512, 1_024, 2_048, 4_096, 8_192)
DECODED = (1_024, 4_096, 16_384, 65_536)

Table = list[dict[str, Any]]


def raced(chosen: argparse.Namespace, jobs: dict[str, dict[str, Any]]) -> dict[str, pairs.Measured]:
    """Runs jobs in processes of their own, taking turns."""
    own = [__file__, "--threads", str(chosen.threads), "--contend"]
    commands = {name: [*own, json.dumps(job)] for name, job in jobs.items()}
    return pairs.measure(commands, chosen.rounds, chosen.threads)


def against(job: dict[str, Any], peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A job with native kernels, with PyTorch alone, and by each peer as installed and with our settings."""
    jobs = {"native": job, "torch": {**job, "native": False}}
    for name in peers:
        jobs |= {name: {**job, "peer": name}, f"{name} + settings": {**job, "peer": name, "settings": True}}
    return jobs


def layer(chosen: argparse.Namespace) -> Table:
    """One layer's training step at each context."""
    table: Table = []
    for context in chosen.contexts:
        for kind in chosen.kinds:
            job = {"what": "layer", "kind": kind, "context": context, "batch": chosen.batch}
            measured = raced(chosen, against(job, PEERS.get(kind, ())))
            for name, value in measured.items():
                agrees = value.facts["error"] < AGREE
                rate = chosen.batch * context / seconds(value, chosen.threads)
                ratio = seconds(value, chosen.threads) / seconds(measured["native"], chosen.threads)
                table.append({
                    "context": context, "mixer": kind, "by": name, "tokens/s": rate if agrees else None,
                    "native is faster": ratio if agrees and measured["native"].facts["error"] < AGREE else None,
                    "error": value.facts["error"], "spread": value.spread,
                })  # fmt: skip
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
    """Peak memory of one layer's training step over the bytes of its input and output and their gradients."""
    table: Table = []
    for kind in chosen.kinds:
        for context in [context for context in LENGTHS if context <= chosen.longest]:
            for piece in (None, 256):
                found = parts.alone("peak", kind=kind, context=context, piece=piece)
                ends = 4 * 4 * context * parts.WIDTH
                table.append({
                    "mixer": kind, "context": context, "pieces of": piece or "-", "MB": found["live"] / 1e6,
                    "over inputs and outputs": found["live"] / ends, "process, MB": found["resident"] / 1e6,
                })  # fmt: skip
    return table


def decode(chosen: argparse.Namespace) -> Table:
    """One token after a context, batch 1: seconds, and bytes of state, which must be the technique card's."""
    table: Table = []
    for kind in ("attention", "windowed attention", *(kind for kind in chosen.kinds if kind != "attention")):
        for context in [context for context in DECODED if context <= chosen.farthest]:
            found = parts.alone("decoded", kind=kind, context=context)
            assert found["bytes"] == found["card"], f"{kind}: {found} bytes of state, and on the card"
            table.append(
                {"mixer": kind, "context": context, "us/token": found["seconds"] * 1e6, "bytes": found["bytes"]}
            )
    return table


def model(chosen: argparse.Namespace) -> Table:
    """Whole training steps of the same Mamba language model; a rate stands only where losses agree."""
    job = {"what": "model", "context": chosen.contexts[0], "batch": chosen.batch}
    measured = raced(chosen, against(job, ["mambapy"]))
    first = measured["native"].facts["loss"]
    table: Table = []
    for name, value in measured.items():
        agrees = abs(value.facts["loss"] - first) < AGREE * first
        took = seconds(value, chosen.threads)
        table.append({
            "by": name, "tokens/s": chosen.batch * job["context"] / took if agrees else None,
            "native is faster": took / seconds(measured["native"], chosen.threads) if agrees else None,
            "loss": value.facts["loss"], "spread": value.spread,
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


def show(name: str, table: Table) -> None:
    """Prints a table, and keeps it with the machine and versions it was measured on."""
    print(f"\n{name}")
    columns = list(table[0])
    rows = [[_cell(row[column]) for column in columns] for row in table]
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    write_json(RESULTS / f"sequence_{name}.json", {"machine": machine(), "versions": versions(), "table": table})


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return "differs" if value is None else str(value)


def plot(name: str, table: Table, figures: Sequence[str]) -> None:
    """One panel for each figure against the context, a line for each mixer, as SVG beside the JSON."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    _, axes = pyplot.subplots(1, len(figures), figsize=(6 * len(figures), 4.5), squeeze=False)
    for axis, figure in zip(axes[0], figures, strict=True):
        for number, kind in enumerate(dict.fromkeys(row["mixer"] for row in table)):
            rows = [row for row in table if row["mixer"] == kind and row.get("pieces of", "-") == "-"]
            points = [(row["context"], row[figure]) for row in rows]
            axis.plot(*zip(*points, strict=True), label=kind, marker="osD^v<>"[number % 7], color=f"C{number % 10}")
        axis.set(xlabel="context", ylabel=figure, ylim=(0, None))
        axis.set_xscale("log", base=2)
        if figure in ("us/token", "bytes", "MB"):
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
    plots = {"length": ["over the first"], "memory": ["MB", "over inputs and outputs"], "decode": ["us/token", "bytes"]}
    measures = {"layer": layer, "length": length, "memory": memory, "decode": decode, "model": model}
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)}; there are {', '.join(PARTS)}")
    for name in chosen.parts or PARTS:
        table = measures[name](chosen)
        show(name, table)
        if name in plots:
            plot(name, table, plots[name])


if __name__ == "__main__":
    main()
