"""Single operations on the CPU, forward and backward: Fairway's kernels beside torch, eager and compiled.

`python benchmarks/kernel_speed.py [--threads 1] [--rounds 7] [--only attention]`. Each way runs in a process of its
own, torch as installed and with Fairway's allocator setting. Before it is timed, each way's output and gradients are
set against the same operation in float64; without that no ratio is printed. The share of the limit is the least time
that the products (at the measured bfloat16 rate) or the traffic (at the measured copying rate) would take.
"""

import argparse
import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import pairs
from kernel_cases import Case, Function
from kernel_cases import cases as layer_cases
from recurrence_cases import recurrences

from fairway.core.device import keep_freed_memory
from fairway.core.probe import machine, versions
from fairway.core.storage import read_json, write_json
from report import RESULTS

SIZE = 1024
COPIED = 1 << 24
REPEATS = 3
LIMITS = ("products", "copies")
COMPILED = "compiled"

Prepared = tuple[Callable[[], None], dict[str, Any]]


def cases() -> dict[str, Callable[[], Case]]:
    """Every operation by the name it has in the table."""
    return layer_cases() | recurrences()


def both_ways(case: Case, function: Function, inputs: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """The outputs, and the gradients by every input of their sum weighed by fixed numbers."""
    x = [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast and dtype is None):
        y = results(function(*x, *case.extra))
    return [*(part.detach() for part in y), *torch.autograd.grad(y, x, [_upstream(part) for part in y])]


def results(y: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What an operation returned, as a tuple."""
    return y if isinstance(y, tuple) else (y,)


def _upstream(y: Tensor) -> Tensor:
    if y.ndim == 0:
        return torch.ones_like(y)
    return torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)


def error(case: Case, function: Function) -> float:
    """Largest relative distance of output and gradients from those in float64."""
    inputs = case.inputs()
    definition = case.definition or next(iter(case.peers.values()))
    exact = both_ways(case, definition, inputs, torch.float64)
    seen = both_ways(case, function, inputs)
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(seen, exact, strict=True))


def prepare(name: str, way: str) -> Prepared:
    """One operation, one way."""
    if name in LIMITS:
        return prepare_limit(name)
    case = cases()[name]()
    function = case.ours if way == "ours" else case.peers[way.removeprefix(COMPILED).strip()]
    if way.startswith(COMPILED):
        function = torch.compile(function)
    inputs = [tensor.requires_grad_() for tensor in case.inputs()]
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        weights = [_upstream(y) for y in results(function(*inputs, *case.extra))]

    def run() -> None:
        for _ in range(REPEATS):
            with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
                y = results(function(*inputs, *case.extra))
            torch.autograd.grad(y, inputs, weights)

    wrong, most = error(case, function), peak(run)
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
    return run, {"error": wrong, "peak_bytes": most, "temporary_bytes": most - gradients}


def peak(action: Callable[[], None]) -> int:
    """Most bytes of tensors held at once by an action, beyond what was there before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # pyrefly: ignore
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def prepare_limit(name: str) -> Prepared:
    x = torch.ones(SIZE, SIZE, dtype=torch.bfloat16)
    source, target = torch.ones(2, COPIED, dtype=torch.uint8).unbind()

    def run() -> None:
        for _ in range(10):
            torch.mm(x, x) if name == "products" else target.copy_(source)

    return run, {}


def measure(name: str, ways: dict[str, list[str]], threads: int, rounds: int) -> dict[str, pairs.Measured]:
    base = [__file__, "--threads", str(threads), "--contend", name]
    return pairs.measure({way: [*base, *more] for way, more in ways.items()}, rounds, threads)


def limits(threads: int, rounds: int) -> tuple[float, float]:
    """FLOP/s of bfloat16 products, and bytes per second read and written by copies of 16 MB."""
    found = measure("products", {"products": []}, threads, rounds) | measure("copies", {"copies": []}, threads, rounds)
    products, copies = (seconds(found[name], threads) for name in LIMITS)
    return 10 * 2.0 * SIZE**3 / products, 10 * 2.0 * COPIED / copies


def seconds(measured: pairs.Measured, threads: int) -> float:
    return measured.cpu if threads == 1 else measured.wall


def race(name: str, threads: int, rounds: int, limit: tuple[float, float]) -> dict[str, Any]:
    """Times one operation every way; prints its lines and returns its record."""
    case = cases()[name]()
    ways = {"ours": ["--way", "ours", "--allocator"]}
    for peer in case.peers:
        ways |= {f"{peer} as installed": ["--way", peer], f"{peer} with allocator": ["--way", peer, "--allocator"]}
    if case.compiles:
        compiled = f"{COMPILED} {next(iter(case.peers))}"
        ways[f"{compiled} with allocator"] = ["--way", compiled, "--allocator"]
    measured = measure(name, ways, threads, rounds)
    took = {way: seconds(value, threads) / REPEATS for way, value in measured.items()}
    allowed = {way: case.error if way == "ours" else case.peer_error or case.error for way in measured}
    right = {way: value.facts["error"] <= allowed[way] for way, value in measured.items()}
    least = case.flops / limit[0] + case.bytes / limit[1]
    fair = [took[way] for way in took if way != "ours" and right[way]]
    print(name)
    for way, value in measured.items():
        ratio = f"{took[way] / took['ours']:6.2f} x ours" if right["ours"] and right[way] else "  wrong result"
        print(
            f"  {way:<38}{1e3 * took[way]:9.3f} ms +-{100 * value.spread:4.1f} %{ratio}"
            f"{100 * least / took[way]:7.1f} % of the limit  error {value.facts['error']:.0e}"
            f"{value.facts['peak_bytes'] / 1e6:8.1f} MB"
            f"{value.facts['temporary_bytes'] / 1e6:8.1f} MB without the gradients"
        )
    best = min(fair) / took["ours"] if fair and right["ours"] else None
    print("  the best peer takes " + ("no comparable time" if best is None else f"{best:.2f} times ours"))
    return {
        "seconds": took,
        "right": right,
        "least_seconds": least,
        "times_ours": best,
        "facts": {way: value.facts for way, value in measured.items()},
        "spread": {way: value.spread for way, value in measured.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="operations whose name contains this; others stay as they are")
    parser.add_argument("--contend")
    parser.add_argument("--way", default="ours")
    parser.add_argument("--allocator", action="store_true")
    chosen = parser.parse_args()
    if chosen.contend:
        torch.set_num_threads(chosen.threads)
        if chosen.allocator:
            keep_freed_memory()
        pairs.serve(lambda: prepare(chosen.contend, chosen.way))
        return
    limit = limits(chosen.threads, chosen.rounds)
    print(f"bf16 products {limit[0] / 1e9:,.0f} GFLOP/s, copies {limit[1] / 1e9:.1f} GB/s")
    names = [name for name in cases() if chosen.only.lower() in name.lower()]
    path = RESULTS / f"kernel_speed_{chosen.threads}t.json"
    kept = read_json(path)["operations"] if chosen.only and path.exists() else {}
    table = kept | {name: race(name, chosen.threads, chosen.rounds, limit) for name in names}
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "limits": {"bf16_flops": limit[0], "copy_bytes_per_second": limit[1]},
        "operations": table,
    }
    write_json(path, record)


if __name__ == "__main__":
    main()
