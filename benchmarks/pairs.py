"""Contenders measured side by side in one run: each in a process of its own, taking turns, medians over the rounds.

A process of its own lets one contender run as its user installed it while another runs with changed settings. Only
one works at a time. Each round gives process CPU seconds and wall seconds; a round in which other processes took more
than a tenth of the cores that this one may use (all of them, unless `taskset` says otherwise) is dropped and repeated.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

BUSY = 0.10
TRIES = 4


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds of one contender."""

    cpu: float
    wall: float
    spread: float
    """Half the range between the quartiles of the wall seconds, over their median."""
    rounds: int
    disturbed: int
    facts: dict[str, Any]


def serve(prepare: Callable[[], tuple[Callable[[], None], dict[str, Any]]]) -> None:
    """The contender's side: prepares once, then runs one round for each line on standard input."""
    run, facts = prepare()
    run()
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        run()
        print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]), flush=True)


def measure(
    commands: dict[str, Sequence[str]],
    rounds: int,
    threads: int,
    environment: dict[str, str] | None = None,
    patience: float | None = None,
) -> dict[str, Measured]:
    """Runs every command as a contender and lets them take turns.

    A contender that has spent `patience` seconds on its turns is given no more; its first it gets in any case.
    """
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})}
    racers = {
        name: subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings
        )
        for name, command in commands.items()
    }
    facts = {name: json.loads(_line(name, racer)) for name, racer in racers.items()}
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in racers}
    disturbed = dict.fromkeys(racers, 0)
    for _ in range(rounds):
        for name, racer in racers.items():
            if patience is not None and sum(wall for _, wall in results[name]) > patience:
                continue
            for attempt in range(TRIES):
                pair, others = _turn(name, racer, threads)
                if others <= BUSY or attempt == TRIES - 1:
                    break
                disturbed[name] += 1
            results[name].append(pair)
    for racer in racers.values():
        assert racer.stdin is not None
        racer.stdin.close()
        racer.wait()
    return {name: _summed(results[name], disturbed[name], facts[name]) for name in racers}


def _turn(name: str, racer: subprocess.Popen[str], threads: int) -> tuple[tuple[float, float], float]:
    before = _busy()
    assert racer.stdin is not None
    racer.stdin.write("go\n")
    racer.stdin.flush()
    cpu, wall = json.loads(_line(name, racer))
    others = max(0.0, _busy() - before - cpu - 0.02) / max(wall * len(_cores()), 1e-9)
    return (cpu, wall), others if threads else 0.0


def _busy() -> float:
    """Seconds that the cores at hand have worked since the machine started."""
    each = psutil.cpu_times(percpu=True)
    return sum(each[core].user + each[core].nice + each[core].system for core in _cores())


def _cores() -> list[int]:
    return psutil.Process().cpu_affinity() if sys.platform == "linux" else list(range(psutil.cpu_count() or 1))


def _line(name: str, racer: subprocess.Popen[str]) -> str:
    assert racer.stdout is not None
    line = racer.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} ended with exit code {racer.wait()}")
    return line


def _summed(pairs: list[tuple[float, float]], disturbed: int, facts: dict[str, Any]) -> Measured:
    cpus, walls = zip(*pairs, strict=True)
    quartiles = statistics.quantiles(walls, n=4) if len(walls) > 1 else [walls[0]] * 3
    middle = statistics.median(walls)
    return Measured(
        statistics.median(cpus), middle, (quartiles[2] - quartiles[0]) / 2 / middle, len(walls), disturbed, facts
    )
