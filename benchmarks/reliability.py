"""Measures every reliability figure and writes `docs/reliability.md`: what was tried, how often, what came of it.

    python benchmarks/reliability.py [--kills 300] [--damages 10000] [--fuzz 2500000] [--only kills,damage]

Each row is measured by this command; a row that `--only` leaves out keeps what it had, with its own date and machine.
"""

import argparse
import datetime
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

import torch

from artifact.forging import honest
from core import crashing
from fairway.core.probe import machine
from fairway.core.storage import read_json, write_json, write_text
from fuzz.fuzzing import TARGETS, Campaign, fuzz
from report import RESULTS
from survival.damage import artifact_damage, checkpoint_damage, shard_damage
from survival.lost_ranks import RANKS, STEPS, recover, undisturbed
from survival.trainers import Killing, Zygote, latest, recipe, training

RECORD = RESULTS / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
SOON = 30.0
"""Seconds in which a launched training must go on after it lost a rank."""


@dataclass(frozen=True)
class Found:
    """What one row came to."""

    n: str
    result: str
    held: bool


@dataclass(frozen=True)
class Row:
    """One promise and how it is measured."""

    what: str
    figure: str
    measure: Callable[[argparse.Namespace, Path], Found]


def crash_points(_: argparse.Namespace, home: Path) -> Found:
    """Every file operation of every change of the disk, the process ended before each."""
    points = 0
    for number, name in enumerate(crashing.SCENARIOS):
        command = [sys.executable, str(ROOT / "tests" / "core" / "crashing.py"), name, str(home / str(number))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return Found(f"{points} points", f"{name}: {done.stderr.splitlines()[-1]}", False)
        points += int(done.stdout.split()[0])
    what = f"{points} points of {len(crashing.SCENARIOS)} changes"
    return Found(what, "old or new state, whole, after every one; the next attempt ends well", True)


def kills(chosen: argparse.Namespace, home: Path) -> Found:
    """Kills by time and at fault points; every run is finished and compared bit for bit."""
    with Zygote() as zygote:
        toll = Killing(zygote, home, seed=chosen.seed, steps=24).run(chosen.kills)
    saving = sum(count for name, count in toll.at_points.items() if name.startswith(("storage", "checkpoint")))
    n = f"{toll.kills} kills ({toll.by_time} at random times, {saving} inside a save), {toll.runs} runs"
    result = f"{toll.unloadable} unloadable, {toll.refused} refused, {toll.differing} of {toll.runs} ends not bit-equal"
    return Found(n, result, not (toll.unloadable or toll.refused or toll.differing))


def damage(chosen: argparse.Namespace, home: Path) -> Found:
    """A bit flipped, a file cut, a page zeroed, a byte added, two files swapped, a file gone."""
    with Zygote() as zygote:
        done = zygote.run(*training(recipe(home, steps=3), home / "run"), said=home / "said")
    assert done.code == 0, done.said
    (home / "model.fwy").write_bytes(honest())
    checkpoint = latest(home / "run")
    assert checkpoint is not None
    found = {
        "checkpoint": checkpoint_damage(checkpoint.path, chosen.seed).run(chosen.damages),
        "shards": shard_damage(home / "run" / "data", chosen.seed).run(chosen.damages),
        "artifact": artifact_damage(home / "model.fwy", chosen.seed).run(chosen.damages),
    }
    shares = ", ".join(f"{name} {100 * one.refused / one.trials:.2f} %" for name, one in found.items())
    return Found(f"{chosen.damages:,} of each", f"refused: {shares}", not any(one.missed for one in found.values()))


def fuzzing(chosen: argparse.Namespace, home: Path) -> Found:
    """Hostile artifacts and shards in processes of bounded memory."""
    found: dict[str, Campaign] = {
        target: fuzz(target, chosen.fuzz, chosen.seed, home / target, chosen.workers) for target in TARGETS
    }
    n = ", ".join(f"{one.inputs:,} {target}s ({one.inputs / one.seconds:,.0f}/s)" for target, one in found.items())
    worst = max(one.slowest for one in found.values())
    memory = max(one.memory for one in found.values())
    findings = [finding for one in found.values() for finding in one.findings]
    result = f"{len(findings)} findings; slowest {1000 * worst:.1f} ms; memory +{memory / 1e6:.0f} MB"
    return Found(n, result if not findings else f"{result}; {findings[0]}", not findings)


def ranks(chosen: argparse.Namespace, home: Path) -> Found:
    """One of four ranks killed in a launched training, each rank in turn."""
    calm, lost = undisturbed(home / "calm"), range(chosen.losses)
    found = [recover(home / str(number), number % RANKS, signal.SIGKILL) for number in lost]
    right = [
        one.steps == list(range(1, STEPS + 1))
        and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(one.losses, calm, strict=True))
        for one in found
    ]
    seconds, orphans = [one.seconds for one in found], sum(one.orphans for one in found)
    result = (
        f"{sum(right)} of {len(found)} went on and ended like an undisturbed run; first new step after "
        f"{statistics.median(seconds):.1f} s in the median, {max(seconds):.1f} s at most; {orphans} orphans"
    )
    return Found(f"{len(found)} kills", result, all(right) and not orphans and max(seconds) <= SOON)


def suite(*paths: str, what: str, select: str = "") -> Callable[[argparse.Namespace, Path], Found]:
    """A row whose measure is a part of the test suite: how many of its tests pass."""

    def measure(_: argparse.Namespace, home: Path) -> Found:
        report = home / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *paths]
        command += ["-k", select] if select else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
        counts = ElementTree.parse(report).getroot()[0].attrib
        bad = int(counts["failures"]) + int(counts["errors"])
        ran = int(counts["tests"]) - int(counts["skipped"])
        return Found(f"{ran} {what}", f"{ran - bad} of {ran} as promised", ran > 0 and not bad)

    return measure


ROWS: dict[str, Row] = {
    "crash points": Row("Ended before each file operation of a save", "old or new, never neither", crash_points),
    "kills": Row("SIGKILL while training, saving and resuming", "0 unloadable, end bit-equal", kills),
    "ranks": Row("One of four ranks killed while training", f"goes on in {SOON:g} s, no orphan", ranks),
    "stops": Row(
        "Killed while resuming, SIGTERM, two trainers, full disk",
        "all go on or are refused in one sentence",
        suite("tests/survival/test_killing.py", what="cases", select="not twenty"),
    ),
    "changes": Row(
        "Recipe, text, tokenizer, code, torch changed before a resume",
        "refused with the difference, or allowed on record",
        suite("tests/survival/test_changes.py", what="cases"),
    ),
    "damage": Row("Bit flipped, cut, zeroed, swapped, gone", "100 % refused before a tensor is used", damage),
    "fuzz": Row("Fuzzed artifacts and shards", "no crash, hang over 1 s or unbounded memory", fuzzing),
    "hostile": Row(
        "Handcrafted hostile artifacts",
        "each refused in under 0.1 s and 100 MB",
        suite("tests/artifact/test_hostile.py", what="files", select="at_once"),
    ),
    "cheats": Row("Planted evaluation cheats", "all refused by name", suite("tests/cheats", what="cases")),
    "proof": Row(
        "Text and random bytes compressed and restored in fresh processes",
        "byte-exact, within 0.1 % + 64 B of the score",
        suite("tests/evaluate/test_proof.py", what="cases"),
    ),
    "agreement": Row(
        "One artifact scored by evaluation, by proof and token by token",
        "equal within 1e-6 bits per byte",
        suite("tests/evaluate/test_bpb.py", what="cases", select="agree or batch"),
    ),
    "numbers": Row(
        "NaN and infinity in loss and gradients",
        "one step skipped, no parameter touched",
        suite("tests/survival/test_bad_numbers.py", what="cases"),
    ),
    "order": Row(
        "Rows after a change of world size or micro-batch",
        "the same list",
        suite("tests/survival/test_order.py", what="cases"),
    ),
    "text": Row(
        "Text of any kind, prepared and restored",
        "whole, and soon",
        suite("tests/survival/test_any_text.py", "tests/contract/test_tokenizers.py", what="cases"),
    ),
}


def page(record: dict[str, Any]) -> str:
    """The record as a page."""
    head = [
        "# Reliability",
        "",
        "What is promised about killed runs, damaged and hostile files, and how often each promise was tested.",
        "`make reliability` writes this page with every row at its full N; smaller ones are given by options, as in",
        "`python benchmarks/reliability.py --kills 20 --damages 500 --fuzz 20000`. No failure in N trials bounds the",
        "rate of failure below 3 / N with 95 % confidence.",
        "",
        "| what | promised | tried | result | held | seconds | date |",
        "|---|---|---|---|---|---|---|",
    ]
    lines = [
        f"| {row.what} | {row.figure} | {kept['n']} | {kept['result']} | {'yes' if kept['held'] else '**no**'} "
        f"| {kept['seconds']:.0f} | {kept['date']} |"
        for name, row in ROWS.items()
        if (kept := record.get(name))
    ]
    machines = sorted({kept["machine"] for kept in record.values()})
    return "\n".join([*head, *lines, "", "Measured on: " + "; ".join(machines) + ".", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--losses", type=int, default=10, help="ranks to kill")
    parser.add_argument("--damages", type=int, default=10_000, help="for each of checkpoint, shards and artifact")
    parser.add_argument("--fuzz", type=int, default=2_500_000, help="inputs for each of artifact and shard")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows to measure, of: {', '.join(ROWS)}")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = read_json(RECORD) if RECORD.exists() else {}
    facts = machine()
    where = f"{facts['processor']}, {facts['cores']} cores, Python {facts['python']}, torch {facts['torch']}"
    held = True
    for name in chosen.only.split(","):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as home:
            found = ROWS[name].measure(chosen, Path(home))
        seconds, date = time.monotonic() - start, datetime.date.today().isoformat()
        record[name] = {**vars(found), "seconds": round(seconds, 1), "date": date, "machine": where}
        write_json(RECORD, record)
        write_text(PAGE, page(record))
        print(f"{name:<14}{found.n:<60}{found.result}", flush=True)
        held &= found.held
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
