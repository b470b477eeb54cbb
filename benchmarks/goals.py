"""The native kernels beside their goals on the CPU: what `results/` holds of each, as one table.

A ratio is ours over the fastest peer of the same run. What the limit allows is the ratio of a kernel that would run at
the rate of products or of copying that was measured in that run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from page_parts import table

Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the best peer."""

    installed: float
    """The peer as its user gets it."""
    best: float
    """The peer in its best settings."""
    allowed: float | None = None
    """At the measured limit, over the same."""


@dataclass(frozen=True)
class Goal:
    """One line of the table."""

    what: str
    peer: str
    must: float
    stretch: float
    of: Callable[[Records], list[Ratio]]


def _operations(*names: str) -> Callable[[Records], list[Ratio]]:
    """Operations whose names begin so."""

    def of(records: Records) -> list[Ratio]:
        found = records.get("kernel_speed_1t", {"operations": {}})["operations"]
        return [ratio for name in sorted(found) if name.startswith(names) and (ratio := operation(found[name]))]

    return of


def operation(record: Mapping[str, Any]) -> Ratio | None:
    """One operation of `kernel_speed.py`; none if a result of ours or of all peers is wrong."""
    peers = {name: taken for name, taken in record["seconds"].items() if name != "ours" and record["right"][name]}
    installed = [taken for name, taken in peers.items() if name.endswith("as installed")]
    if not (record["right"]["ours"] and installed):
        return None
    own, best = record["seconds"]["ours"], min(peers.values())
    return Ratio(min(installed) / own, best / own, best / record["least_seconds"])


def _records(records: Records, *prefixes: str) -> list[Mapping[str, Any]]:
    """Races whose files begin so."""
    return [record for name, record in sorted(records.items()) if name.startswith(prefixes)]


def _race(prefix: str | tuple[str, ...], ours: str = "fairway", peers: str = "") -> Callable[[Records], list[Ratio]]:
    """Our best contender of this name over the peers whose names begin so."""
    prefixes = (prefix,) if isinstance(prefix, str) else prefix
    return lambda records: [race(record, ours, peers) for record in _records(records, *prefixes)]


def race(record: Mapping[str, Any], ours: str, peers: str) -> Ratio:
    """Our best contender of a name over the fastest peer, as installed and in any settings."""
    rates = record["rates"]
    own = max((name for name in rates if name.startswith(ours)), key=lambda name: rates[name])
    others = {name: rate for name, rate in rates.items() if name.startswith(peers) and not name.startswith("fairway")}
    best = max(others.values())
    ceiling = record.get("bf16_flops")
    allowed = ceiling / record["measured"][own]["facts"]["flops"] / best if ceiling else None
    return Ratio(
        rates[own] / max(rate for name, rate in others.items() if " with " not in name), rates[own] / best, allowed
    )


def _mamba(records: Records) -> list[Ratio]:
    if "sequence_model" not in records:
        return []
    rates = {row["by"]: row["tokens/s"] for row in records["sequence_model"]["table"]}
    peers = {name: rate for name, rate in rates.items() if name.startswith("mambapy")}
    return [Ratio(rates["native"] / peers["mambapy"], rates["native"] / max(peers.values()))]


def _own_int8(records: Records) -> list[Ratio]:
    races = [record["rates"] for record in _records(records, *SPARSE)]
    ratios = [rates["fairway-sparse"] / rates["fairway-int8"] for rates in races]
    return [Ratio(ratio, ratio) for ratio in ratios]


SPARSE = ("sparse_speed_1024", "sparse_speed_2048", "sparse_speed_4096")
RECURRENCES = ("gated linear", "decay of heads", "retention", "delta rule", "gated delta", "RWKV")
GOALS = (
    Goal("causal attention", "SDPA", 5, 8, _operations("attention")),
    Goal("RMSNorm", "torch", 1.3, 2, _operations("RMSNorm")),
    Goal("add + RMSNorm", "torch", 1.3, 2, _operations("add + RMSNorm")),
    Goal("DyT, Derf", "torch", 3, 4, _operations("DyT", "Derf")),
    Goal("linear + cross-entropy", "torch", 1.2, 1.45, _operations("linear +")),
    Goal("training step, 2.9 M parameters", "plain GPT, Llama", 2.2, 2.8, _race("train_speed_fixed")),
    Goal("training step, default recipe", "plain GPT, Llama", 2.2, 2.8, _race("train_speed_default")),
    Goal("selective scan", "mambapy", 40, 90, _operations("selective scan")),
    Goal("Mamba training step", "mambapy", 12, 25, _mamba),
    Goal("other recurrences", "transformers, fla", 8, 20, _operations(*RECURRENCES)),
    Goal("Muon step", "torch.optim.Muon", 1.8, 2.6, _race("optimizer_muon")),
    Goal("experts", "Mixtral", 1.6, 2, _operations("experts")),
    Goal("decoding, 3 M, 4 bits", "llama.cpp", 4, 6, _race("decode_speed_small", "fairway-int4", "llama.cpp-Q4")),
    Goal("decoding, 3 M, 8 bits", "llama.cpp", 4, 6, _race("decode_speed_small", "fairway-int8", "llama.cpp-Q8")),
    Goal("decoding, 17 M, 4 bits", "llama.cpp", 2.5, 3.5, _race("decode_speed_mid", "fairway-int4", "llama.cpp-Q4")),
    Goal("decoding, 17 M, 8 bits", "llama.cpp", 2.5, 3.5, _race("decode_speed_mid", "fairway-int8", "llama.cpp-Q8")),
    Goal("decoding, 3 M", "transformers", 30, 30, _race("decode_speed_small", "fairway", "llama-")),
    Goal("entropy decoding", "constriction", 12, 20, _race("coder_decode")),
    Goal("entropy decoding, tables included", "constriction", 12, 20, _race("coder_decode", "fairway stream")),
    Goal("entropy encoding", "constriction", 12, 20, _race("coder_encode")),
    Goal("entropy encoding, tables included", "constriction", 12, 20, _race("coder_encode", "fairway stream")),
    Goal("sparse mat-vec, 90 %", "scipy CSR", 7, 10, _race(SPARSE, "fairway-sparse", "scipy-csr")),
    Goal("sparse mat-vec, 90 %", "torch CSR", 7, 10, _race(SPARSE, "fairway-sparse", "torch-csr")),
    Goal("sparse mat-vec, 90 %", "our int8", 1.5, 1.5, _own_int8),
    Goal("scoring, float32", "plain GPT", 2, 3, _race("scoring_speed", "fairway fp32", "gpt fp32")),
    Goal("scoring, bfloat16", "plain GPT", 2, 3, _race("scoring_speed", "fairway bf16", "gpt bf16")),
    Goal("reading a prompt", "plain GPT", 2, 3, _race("prefill_speed")),
)


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = (f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"


def section(records: Records) -> Iterator[str]:
    """The goals of which there are results."""
    yield "## Goals of the native kernels"
    yield (
        "Times as fast as the fastest peer, on one thread, forward and backward where there is one, over all cases of "
        "the tables below. What the limit allows is what a kernel at the measured rate of products or copying would "
        "reach over the peer at its best. The goals were set on a Zen 5, whose rate of bfloat16 products is twice that "
        "of a Zen 4."
    )
    rows = []
    for goal in GOALS:
        if ratios := goal.of(records):
            reached = [_range([getattr(ratio, side) for ratio in ratios]) for side in ("installed", "best", "allowed")]
            rows.append([goal.what, goal.peer, f"{goal.must:g}", f"{goal.stretch:g}", *reached])
    columns = ("kernel", "peer", "goal", "stretch", "peer as installed", "peer at its best", "the limit allows")
    yield table(columns, rows)
