"""Supervises the ranks of one training job on this machine.

Where a rank dies or falls silent, all ranks are killed and the whole job starts again from its newest checkpoint, on
a new port: a half-dead job's store and connections are never reused. Each rank beats through a pipe after every step,
leads a process group of its own, and dies with its supervisor.
"""

import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from fairway.core.device import available_threads
from fairway.core.errors import ConfigError, FairwayError, Interrupted, TrainingError
from fairway.core.log import Event, Listener
from fairway.train.distributed import HEARTBEAT

_GRACE = 1.0
"""Seconds that other ranks get to say why they ended, after the first did."""
_DIES_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux' prctl."""


@dataclass(frozen=True)
class Job:
    """What to run and how long to be patient."""

    arguments: tuple[str, ...]
    """Of `fairway`, verb first."""
    ranks: int
    restarts: int = 10
    silence: float = 60.0
    """Seconds without any step of a rank after which the job counts as stuck."""
    start: float = 900.0
    """The same before its first step."""
    stopping: float = 60.0
    """Seconds to save in, once the job is asked to stop."""


@dataclass
class _Rank:
    process: subprocess.Popen[bytes]
    pipe: int
    heard: float = field(default_factory=time.monotonic)
    began: bool = False


def supervise(job: Job, listener: Listener) -> int:
    """Runs a job to its end; returns how often it was started again.

    Raises `Interrupted` where it was asked to stop, and `TrainingError` where it cannot go on: after an error that
    would come again, or more restarts than allowed.
    """
    if job.ranks < 1:
        raise ConfigError(f"{job.ranks} ranks were asked for; 1 or more would work.")
    with _stop_requests() as asked:
        for restarts in range(job.restarts + 1):
            ended = _attempt(job, asked)
            if ended is None:
                return restarts
            listener(Event("launch", message=f"{ended} All ranks were killed; the job starts again."))
    raise TrainingError(f"The job died {job.restarts + 1} times; the last time: {ended}")


def _attempt(job: Job, asked: list[int]) -> str | None:
    """Runs all ranks once; returns None where they finished, or what ended them."""
    ranks = _started(job)
    try:
        return _watch(job, ranks, asked)
    finally:
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.killpg(rank.process.pid, signal.SIGKILL)
            rank.process.wait()
            os.close(rank.pipe)


def _started(job: Job) -> list[_Rank]:
    port = _free_port()
    threads = max(1, available_threads() // job.ranks)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def die_with_parent() -> None:
        if prctl is not None:
            prctl(_DIES_WITH_PARENT, signal.SIGKILL)

    ranks = []
    for number in range(job.ranks):
        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        environment = {
            "RANK": number,
            "LOCAL_RANK": number,
            "WORLD_SIZE": job.ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": threads,
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            HEARTBEAT: theirs,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "fairway", *job.arguments],
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            pass_fds=[theirs],
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        os.close(theirs)
        ranks.append(_Rank(process, ours))
    return ranks


def _watch(job: Job, ranks: Sequence[_Rank], asked: list[int]) -> str | None:
    passed_on = 0.0
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            selector.register(rank.pipe, selectors.EVENT_READ, rank)
        while True:
            for key, _ in selector.select(0.2):
                _hear(key.data, selector)
            codes = [rank.process.poll() for rank in ranks]
            if any(codes) or all(code == 0 for code in codes):
                return _verdict(job, ranks, asked)
            if asked and not passed_on:
                passed_on = time.monotonic()
                for rank in ranks:
                    rank.process.send_signal(signal.SIGTERM)
            if passed_on and time.monotonic() - passed_on > job.stopping:
                raise Interrupted("The ranks did not stop in time and were killed; the last checkpoint is intact.")
            silent = [index for index, rank in enumerate(ranks) if _silence(rank) > _limit(job, rank)]
            if silent and codes[silent[0]] is None:
                return f"Rank {silent[0]} made no step for {_silence(ranks[silent[0]]):.0f} s."


def _hear(rank: _Rank, selector: selectors.BaseSelector) -> None:
    if os.read(rank.pipe, 4096):
        rank.heard, rank.began = time.monotonic(), True
    else:
        selector.unregister(rank.pipe)


def _silence(rank: _Rank) -> float:
    return time.monotonic() - rank.heard


def _limit(job: Job, rank: _Rank) -> float:
    return job.silence if rank.began else job.start


def _verdict(job: Job, ranks: Sequence[_Rank], asked: list[int]) -> str | None:
    """What the end of one rank means; the others get a moment to end by themselves, or to save."""
    codes = _codes_after(_GRACE, ranks)
    if asked or Interrupted.exit_code in codes:
        _codes_after(job.stopping, ranks)
        raise Interrupted("Stopped; run the same command again to go on from there.")
    if FairwayError.exit_code in codes:
        raise TrainingError(f"Rank {codes.index(FairwayError.exit_code)} gave up, for the reason above.")
    first = next((index for index, code in enumerate(codes) if code), None)
    if first is None:
        return None
    code = codes[first]
    assert code is not None
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"Rank {first} {how}."


def _codes_after(seconds: float, ranks: Sequence[_Rank]) -> list[int | None]:
    """Exit codes once all ranks ended, or after some seconds."""
    deadline = time.monotonic() + seconds
    while any(rank.process.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [rank.process.poll() for rank in ranks]


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that fills with the signals that ask this process to stop."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:  # noqa: ARG001
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
