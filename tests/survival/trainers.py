"""Real training processes for tests to kill, and what a run folder is worth afterwards."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import yaml

from fairway.core.log import silent
from fairway.core.storage import read_journal
from fairway.train.checkpoint import CHECKPOINTS, Checkpoint, latest_checkpoint, read_checkpoint

STEPS = 40
TIMINGS = {"elapsed", "step_seconds", "tokens/s", "mfu"}
"""Figures of the log that no two runs share."""


@dataclass(frozen=True)
class Ended:
    """How a process ended; `code` is negative for a signal."""

    code: int
    said: str


class Zygote:
    """The process that forks trainers; see `zygote.py`."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Sends one command and waits for its answer."""
        assert self.process.stdin
        assert self.process.stdout
        with self._turn:
            print(json.dumps(command), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())

    def start(self, *arguments: object, said: Path, **settings: Any) -> "Trainer":
        """Forks `fairway ARGUMENTS`; its stderr is added to the file `said`."""
        said.parent.mkdir(parents=True, exist_ok=True)
        start = said.stat().st_size if said.exists() else 0
        asked = self.ask(arguments=[str(argument) for argument in arguments], stderr=str(said), **settings)
        return Trainer(self, asked["pid"], said, start)

    def run(self, *arguments: object, said: Path, **settings: Any) -> Ended:
        """Forks `fairway ARGUMENTS` and waits for its end."""
        return self.start(*arguments, said=said, **settings).wait()


@dataclass
class Trainer:
    """One running process."""

    zygote: Zygote
    pid: int
    said: Path
    _start: int = 0

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; a process that has just ended has not been waited for and so can still be named."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Waits for the end."""
        code = self.zygote.ask(wait=self.pid)["code"]
        return Ended(code, self.said.read_bytes()[self._start :].decode())

    def kill_after(self, seconds: float) -> Ended:
        """Sends SIGKILL after a while, and waits."""
        time.sleep(seconds)
        self.signal(signal.SIGKILL)
        return self.wait()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits until something has come about; fails where it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing came about"
        time.sleep(0.002)


def recipe(home: Path, steps: int = STEPS) -> Path:
    """Writes a recipe of a very small model that saves after nearly every step, and its text."""
    text = home / "text"
    text.mkdir(parents=True)
    draw = random.Random(0)
    for number in range(30):
        words = [draw.choice(("tide", "wind", "rises", "falls", "at noon", "at dawn")) for _ in range(40)]
        (text / f"{number}.txt").write_text(f"{number}: " + " ".join(words), encoding="utf-8")
    plain = {
        "name": "survivor",
        "budget": {"bytes": "20kB", "steps": steps},
        "data": {
            "source": {"kind": "text", "path": str(text)},
            "tokenizer": {"kind": "byte"},
            "validation_fraction": 0.2,
        },
        "model": {"width": 16, "context": 16, "depth": 1, "mixer": {"kind": "attention", "heads": 2}},
        "train": {"batch": 4, "precision": {"kind": "fp32"}, "checkpoint_every": 0.004, "average": {"start": 0.2}},
    }
    path = home / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def outcome(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """A digest of every tensor of the last checkpoint, bit for bit, and the log without timings."""
    checkpoint = latest(folder)
    assert checkpoint is not None
    digest = sha256(str(checkpoint.step).encode())
    for group, tensors in sorted(checkpoint.groups.items()):
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{group} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(-1).numpy().tobytes())
    log = read_journal(folder / "metrics.jsonl")
    return digest.hexdigest(), [{name: value for name, value in row.items() if name not in TIMINGS} for row in log]


def latest(folder: Path) -> Checkpoint | None:
    """The checkpoint that a resume would take."""
    return latest_checkpoint(folder / CHECKPOINTS, silent)


def unloadable(folder: Path) -> list[Path]:
    """Checkpoints that claim to be valid and are not; raises where the log or every checkpoint is lost."""
    bad = []
    for manifest in (folder / CHECKPOINTS).glob("step-*/manifest.json"):
        try:
            read_checkpoint(manifest.parent)
        except Exception:
            bad.append(manifest.parent)
    latest(folder)
    read_journal(folder / "metrics.jsonl")
    return bad


@dataclass
class Toll:
    """What a series of kills came to."""

    kills: int = 0
    by_time: int = 0
    at_points: Counter[str] = field(default_factory=Counter)
    unloadable: int = 0
    refused: int = 0
    """Restarts that ended with an error."""
    runs: int = 0
    """Runs that were killed on their way and then finished."""
    differing: int = 0
    """Those of them whose weights, state or log are not those of the unbroken run."""


class Killing:
    """Kills a run again and again on its way to the end, at random instants and at random fault points."""

    def __init__(self, zygote: Zygote, home: Path, seed: int, steps: int = STEPS) -> None:
        self.zygote, self.home, self.draw = zygote, home, random.Random(seed)
        self.recipe = recipe(home, steps)
        self.toll = Toll()
        self.trace = home / "trace"
        start = time.monotonic()
        done = self._start(home / "unbroken", trace=str(self.trace)).wait()
        self.seconds = time.monotonic() - start
        assert done.code == 0, done.said
        self.points = self.trace.read_text().split()
        self.wanted = outcome(home / "unbroken")

    def run(self, kills: int) -> Toll:
        """Kills until there were so many; every run that was hit is finished and compared."""
        while self.toll.kills < kills:
            folder = self.home / f"broken-{self.toll.runs}"
            finished = False
            while not finished:
                finished = self._attempt(folder, kills)
            self.toll.runs += 1
            self.toll.differing += outcome(folder) != self.wanted
        return self.toll

    def _attempt(self, folder: Path, kills: int) -> bool:
        """One process of a run, killed unless there were enough kills; returns whether the run is finished."""
        if self.toll.kills >= kills:
            done = self._start(folder).wait()
        elif self.draw.random() < 0.5:
            done = self._start(folder).kill_after(self.draw.uniform(0, 0.8 * self.seconds))
            self.toll.by_time += done.code == -signal.SIGKILL
        else:
            self.trace.unlink()
            at = self.draw.randrange(len(self.points) // 2)
            done = self._start(folder, die_at=at, trace=str(self.trace)).wait()
            if done.code == -signal.SIGKILL:
                self.toll.at_points[self.trace.read_text().split()[-1]] += 1
        self.toll.kills += done.code == -signal.SIGKILL
        self.toll.refused += done.code not in (0, -signal.SIGKILL)
        assert done.code in (0, -signal.SIGKILL), done.said
        self.toll.unloadable += len(unloadable(folder))
        return done.code == 0

    def _start(self, folder: Path, **settings: Any) -> Trainer:
        return self.zygote.start(*training(self.recipe, folder), said=self.home / f"{folder.name}.said", **settings)


def training(path: Path, folder: Path, *assignments: str) -> Sequence[object]:
    """Arguments that train a recipe in a folder."""
    return ("train", path, *assignments, "--folder", folder)
