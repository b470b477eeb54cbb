"""Writes `benchmarks/README.md` from what stands in `benchmarks/results`.

`python benchmarks/tables.py`; `make bench` ends with it.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from goals import operation
from goals import section as goals
from page_parts import table as markdown_table
from page_parts import where
from sequence_tables import section

from fairway.core.storage import read_json, write_text
from report import RESULTS

PAGE = Path(__file__).parent / "README.md"
HEAD = """# Benchmarks

`make bench` runs every script of this folder; each prints its table and keeps it in `results/` with date, machine and
versions. `python benchmarks/tables.py` writes this page from there.

Contenders run in processes of their own and take turns; a figure is the median of the rounds and, behind it, half the
range between the quartiles. A round in which other processes took more than a tenth of the cores in use is repeated.
Results are compared before anything is timed, and where they differ no ratio is shown. "As installed" is a peer as its
user gets it; "with allocator" and "oneDNN" give it the settings that `fairway doctor` shows. On one thread, rates of
training are by process CPU time; a benchmark pinned to one core may have run while another one used the other core.
No benchmark ran on a GPU: none was at hand.

Comparisons of techniques by whole runs, with seeds, sigma and the test, are claims: `benchmarks/claims`, run by
`python benchmarks/claims/run.py NAME`. What is promised about damaged files and killed runs: `docs/reliability.md`.
"""


def ours(name: str) -> bool:
    return name.startswith("fairway") or name.split()[0] == "ours"


def rates(name: str, record: dict[str, Any]) -> Iterator[str]:
    """One race: each contender's rate, spread and ratio to the best peer."""
    best = max((rate for contender, rate in record["rates"].items() if not ours(contender)), default=None)
    rounds = max(value["rounds"] for value in record["measured"].values())
    yield f"## {name.replace('_', ' ')}"
    yield f"{record['unit']}; medians of {rounds} rounds; {where(record)}"
    yield "\n".join(
        [f"| contender | {record['unit']} | spread | times the best peer |", "|---|---|---|---|"]
        + [
            f"| {contender} | {rate:,.1f} | {100 * record['measured'][contender]['spread']:.1f} % "
            f"| {f'{rate / best:.2f}' if best else ''} |"
            for contender, rate in sorted(record["rates"].items(), key=lambda item: -item[1])
        ]
    )
    if (ceiling := record.get("bf16_flops")) is not None:
        shares = ", ".join(
            f"{contender} {100 * rate * record['measured'][contender]['facts']['flops'] / ceiling:.0f} %"
            for contender, rate in sorted(record["rates"].items(), key=lambda item: -item[1])
        )
        yield f"Share of the {1e-9 * ceiling:,.0f} GFLOP/s of bfloat16 products measured in the same run: {shares}."
    if {"fairway shards", "fairway cold"} <= set(record["rates"]):
        share = record["rates"]["fairway shards"] / record["rates"]["fairway cold"]
        yield f"Preparing shards runs at {share:.2f} of the rate of encoding alone, cold; the goal is 0.7."


def quality(name: str, record: dict[str, Any]) -> Iterator[str]:
    """Bits per byte of both sides at equal bytes and seconds."""
    means = {side: statistics.mean(run["bits_per_byte"] for run in record[side]) for side in ("ours", "peer")}
    yield f"## {name.replace('_', ' ')}"
    yield (
        f"{record['seconds']:.0f} s of training, at most {record['cap']:,} bytes; the peer is a plain GPT trained by "
        f"AdamW at the best of {len(record['tuning'])} rates ({record['rate']:g}), stored as int8 and zlib-9; "
        f"{where(record)}"
    )
    lines = ["| side | bits per byte | sigma | n | bytes at most |", "|---|---|---|---|---|"]
    for side, mean in means.items():
        runs = record[side]
        sigma = statistics.stdev(run["bits_per_byte"] for run in runs)
        lines.append(f"| {side} | {mean:.4f} | {sigma:.4f} | {len(runs)} | {max(run['bytes'] for run in runs):,} |")
    yield "\n".join(lines)
    yield f"Fewer bits per byte: {100 * (1 - means['ours'] / means['peer']):.1f} %."


def sizes(record: dict[str, Any]) -> Iterator[str]:
    """Bytes of one artifact's integers."""
    yield "## artifact size"
    yield (
        f"{record['weights']:,} integers of the default artifact; read, checked and decoded in "
        f"{record['seconds']:.3f} s; {where(record)}"
    )
    lines = ["| coded by | bytes | bits an integer |", "|---|---|---|"]
    for name, size in sorted(record["sizes"].items(), key=lambda item: item[1]):
        lines.append(f"| {name} | {size:,.0f} | {8 * size / record['weights']:.3f} |")
    yield "\n".join(lines)


def kernels(record: dict[str, Any]) -> Iterator[str]:
    """One line for each operation: forward and backward, ours and the best peer."""
    yield "## operations, forward and backward"
    products, copies = (1e-9 * record["limits"][name] for name in ("bf16_flops", "copy_bytes_per_second"))
    yield (
        "One thread; the limit is what counted FLOPs and bytes need at the rates of products and of copying measured "
        f"in the same run ({products:,.0f} GFLOP/s in bfloat16, {copies:.0f} GB/s). Right: the output and every "
        "gradient within the case's bound of float64, and how far the furthest is; memory is what is held beside the "
        f"gradients, ours over the best peer's; {where(record)}"
    )
    lines = [
        "| operation | ours | right | share of the limit | best peer as installed | times ours | best peer "
        "| times ours | memory |",
        "|" + "---|" * 9,
    ]
    for name, found in record["operations"].items():
        peers = {peer: taken for peer, taken in found["seconds"].items() if peer != "ours" and found["right"][peer]}
        ratio, own, facts = operation(found), found["seconds"]["ours"], found["facts"]
        right = f"{'yes' if found['right']['ours'] else 'no'}, {facts['ours']['error']:.0e}"
        if ratio is None:
            lines.append(f"| {name} | {1e3 * own:.2f} ms | {right} | | | | | | |")
            continue
        best = min(peers, key=lambda peer: peers[peer])
        memory = facts["ours"]["temporary_bytes"] / max(1, facts[best]["temporary_bytes"])
        lines.append(
            f"| {name} | {1e3 * own:.2f} ms | {right} | {100 * found['least_seconds'] / own:.0f} % "
            f"| {1e3 * own * ratio.installed:.2f} ms | {ratio.installed:.2f} | {1e3 * peers[best]:.2f} ms, {best} "
            f"| {ratio.best:.2f} | {memory:.2f} |"
        )
    yield "\n".join(lines)


def table(name: str, record: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """A list of rows as it is."""
    yield f"## {name.replace('_', ' ')}"
    yield f"One thread; {where(record)}"
    columns = record.get("columns", list(rows[0]))
    yield markdown_table(columns, [[row[column] for column in columns] for row in rows])


def solvers(record: dict[str, Any]) -> Iterator[str]:
    """Compression's solvers beside their peers."""
    yield "## solvers of compression"
    yield (
        "One thread. The peer of SparseGPT and GPTQ is the published loop at block 128 in plain PyTorch, that of Wanda "
        f"our own SparseGPT, that of k-means scikit-learn; {where(record)}"
    )
    lines = ["| task | size | ours | peer | times as fast |", "|---|---|---|---|---|"]
    for row in record["rows"]:
        own, peer = (1e3 * row["measured"][side]["cpu"] for side in ("ours", "peer"))
        lines.append(f"| {row['task']} | {row['size']:,} | {own:.1f} ms | {peer:.1f} ms | {row['ratio']:.1f} |")
    yield "\n".join(lines)


def dynamic(record: dict[str, Any]) -> Iterator[str]:
    """Experts and mixture of depths beside what they replace."""
    yield "## dynamic computation"
    yield f"One thread; {where(record)}"
    lines = ["| comparison | measured | goal |", "|---|---|---|"]
    for name, ratio in record["ratios"].items():
        kind, bound = ("time", "at most") if name == "mixture of depths" else ("tokens/s", "at least")
        compared = f"{name} against the dense model" if kind == "time" else name
        lines.append(f"| {compared}: {kind} over that of the other | {ratio:.2f} | {bound} {record['goals'][name]} |")
    once, often = record["loops"]["applied once"], record["loops"]["applied four times"]
    for what in ("parameters", "weights"):
        name = "bytes of the weights" if what == "weights" else what
        lines.append(
            f"| a block applied four times, less the same applied once: {name} | {often[what] - once[what]} | 0 |"
        )
    yield "\n".join(lines)


def teaching(record: dict[str, Any]) -> Iterator[str]:
    """Steps with a teacher beside a plain step."""
    settings = record["settings"]
    yield "## learning from a teacher"
    yield (
        f"{settings['kind']}; width {settings['width']}, {settings['layers']} layers, the teacher twice as wide; "
        f"threads: {settings['threads']}; medians of {record['rounds']} rounds; {where(record)}"
    )
    lines = ["| step | ms | spread |", "|---|---|---|"]
    for name, seconds in record["seconds"].items():
        lines.append(f"| {name} | {1e3 * seconds:.1f} | {100 * record['spread'][name]:.1f} % |")
    yield "\n".join(lines)
    lines = ["| ratio | measured | goal, at most |", "|---|---|---|"]
    lines += [f"| {name} | {found['ratio']:.2f} | {found['limit']} |" for name, found in record["ratios"].items()]
    yield "\n".join(lines)


def page() -> str:
    """The whole page."""
    records = {path: read_json(path) for path in sorted(RESULTS.glob("*.json"))}
    parts = [HEAD.rstrip(), *goals({path.stem: record for path, record in records.items()})]
    for path, record in records.items():
        if sequences := list(section(path.stem, record)):
            parts += sequences
        elif path.with_suffix(".md").exists():
            parts += [f"## {path.stem.replace('_', ' ')}", where(record), path.with_suffix(".md").read_text().rstrip()]
        elif "rates" in record:
            parts += rates(path.stem, record)
        elif path.stem.startswith("quality_"):
            parts += quality(path.stem, record)
        elif "sizes" in record:
            parts += sizes(record)
        elif "operations" in record:
            parts += kernels(record)
        elif "ratios" in record and "seconds" in record:
            parts += teaching(record)
        elif "loops" in record:
            parts += dynamic(record)
        elif isinstance(record.get("rows"), list):
            parts += solvers(record)
        elif "table" in record:
            parts += table(path.stem, record, record["table"])
        if path.with_suffix(".svg").exists():
            parts.append(f"![{path.stem.replace('_', ' ')}](results/{path.stem}.svg)")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_text(PAGE, page())
