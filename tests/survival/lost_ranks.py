"""A launched training of four ranks that loses one: how soon it goes on, what it leaves behind and where it ends."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fairway.core.storage import read_journal

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
RANKS, STEPS = 4, 120


@dataclass(frozen=True)
class Recovery:
    """What came of one lost rank."""

    seconds: float
    """From the loss to the first step that is new."""
    orphans: int
    """Ranks of the first attempt that live on after the end."""
    steps: list[int]
    losses: list[float]


def _command(folder: Path) -> list[str]:
    recipe = [str(RECIPE), "model.width=32", "model.mixer.heads=2", "data.max_bytes=300kB", f"budget.steps={STEPS}"]
    recipe += ["train.checkpoint_every=0.5", "train.optimizer.kind=adamw"]
    launch = ["launch", "--nproc", str(RANKS), "--timeout", "10s"]
    return [sys.executable, "-m", "fairway", *launch, *recipe, "--folder", str(folder)]


def journal(folder: Path) -> list[dict[str, Any]]:
    return read_journal(folder / "metrics.jsonl")


def undisturbed(folder: Path) -> list[float]:
    """The losses of a run that loses nobody."""
    subprocess.run(_command(folder), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [record["train/loss"] for record in journal(folder)]


def recover(folder: Path, victim: int, how: int, after: int = 40) -> Recovery:
    """Sends a signal to one rank after some steps and follows the job to its end; raises where that is not well."""
    supervisor = subprocess.Popen(_command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(journal(folder)) < after:
        if supervisor.poll() is not None:
            raise RuntimeError(f"the job ended with {supervisor.returncode} before a rank was lost")
        time.sleep(0.05)
    ranks = [child for child in psutil.Process(supervisor.pid).children() if "train" in child.cmdline()]
    ranks.sort(key=lambda child: int(child.environ()["RANK"]))
    os.kill(ranks[victim].pid, how)
    lost, seen = time.monotonic(), len(journal(folder))
    while len(journal(folder)) <= seen and supervisor.poll() is None:
        time.sleep(0.05)
    seconds = time.monotonic() - lost
    if code := supervisor.wait(timeout=300):
        raise RuntimeError(f"the job ended with {code} after it lost rank {victim}")
    records = journal(folder)
    orphans = sum(psutil.pid_exists(rank.pid) for rank in ranks)
    return Recovery(seconds, orphans, [one["step"] for one in records], [one["train/loss"] for one in records])
