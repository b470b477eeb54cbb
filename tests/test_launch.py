"""The supervisor: a job that lost a rank starts again, one that cannot go on ends, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fairway import launch
from fairway.core.errors import ConfigError, Interrupted, TrainingError
from fairway.core.log import Event, silent
from fairway.launch import Job, supervise
from survival.lost_ranks import STEPS, recover, undisturbed

ROOT = Path(__file__).parents[1]

RANK = """
import os, signal, sys, time
folder, rank = sys.argv[1], os.environ["RANK"]
path = os.path.join(folder, rank)
attempts = os.path.getsize(path) if os.path.exists(path) else 0
with open(path, "a") as file:
    file.write("x")
with open(path + ".pids", "a") as file:
    file.write(f"{os.getpid()} {os.environ['MASTER_PORT']}\\n")
def beat():
    os.write(int(os.environ["FAIRWAY_HEARTBEAT"]), b".")
beat()
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ranks run `RANK` and the lines that a test puts into the list, instead of training."""
    lines: list[str] = []
    popen = subprocess.Popen

    def other(command: list[str], **settings: object) -> object:  # noqa: ARG001
        return popen([sys.executable, "-c", RANK + "\n".join(lines), str(tmp_path)], **settings)  # pyrefly: ignore

    monkeypatch.setattr(launch.subprocess, "Popen", other)
    yield lines
    for record in tmp_path.glob("*.pids"):
        for line in record.read_text().splitlines():
            assert not psutil.pid_exists(int(line.split()[0])), "a rank outlived its supervisor"


def ports(folder: Path, rank: int = 0) -> list[str]:
    return [line.split()[1] for line in (folder / f"{rank}.pids").read_text().splitlines()]


def test_ranks_that_end_well_are_not_started_again(start: list[str], tmp_path: Path) -> None:
    start += ["sys.exit(0)"]
    assert supervise(Job(("train",), 3), silent) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if not path.suffix) == ["0", "1", "2"]


def test_a_killed_rank_starts_the_whole_job_again_on_a_fresh_port(start: list[str], tmp_path: Path) -> None:
    start += [
        'if rank == "1" and attempts < 2: os.kill(os.getpid(), signal.SIGKILL)',
        "if attempts < 2: time.sleep(60)",
    ]
    told: list[Event] = []
    assert supervise(Job(("train",), 3), told.append) == 2
    assert all((tmp_path / str(rank)).read_text() == "xxx" for rank in range(3))
    assert len(set(ports(tmp_path))) == 3
    assert "Rank 1 was killed by SIGKILL" in told[0].message


def test_a_rank_that_falls_silent_starts_the_whole_job_again(start: list[str]) -> None:
    start += ['if rank == "0" and not attempts: time.sleep(60)', "while not attempts: beat(); time.sleep(0.05)"]
    told: list[Event] = []
    assert supervise(Job(("train",), 2, silence=0.5), told.append) == 1
    assert "Rank 0 made no step" in told[0].message


def test_a_mistake_of_the_user_is_not_tried_again(start: list[str], tmp_path: Path) -> None:
    start += ['if rank == "1": sys.exit(2)', "time.sleep(60)"]
    with pytest.raises(TrainingError, match="Rank 1 gave up"):
        supervise(Job(("train",), 2), silent)
    assert (tmp_path / "0").read_text() == "x"


def test_a_job_that_always_dies_ends_after_its_restarts(start: list[str], tmp_path: Path) -> None:
    start += ["sys.exit(1)"]
    with pytest.raises(TrainingError, match="died 3 times"):
        supervise(Job(("train",), 1, restarts=2), silent)
    assert (tmp_path / "0").read_text() == "xxx"


def test_a_stop_is_passed_on_so_that_ranks_can_save(start: list[str], tmp_path: Path) -> None:
    start += [
        "def save(*_):",
        "    time.sleep(1.5 * (rank == '0'))",
        "    open(path + '.saved', 'w').close()",
        "    sys.exit(130)",
        "signal.signal(signal.SIGTERM, save)",
        "open(path + '.ready', 'w').close()",
        "while rank == '0' and not os.path.exists(os.path.join(folder, '1.ready')): time.sleep(0.01)",
        f'if rank == "0": os.kill({os.getpid()}, signal.SIGTERM)',
        "time.sleep(60)",
    ]
    with pytest.raises(Interrupted, match="go on from there"):
        supervise(Job(("train",), 2), silent)
    assert (tmp_path / "0.saved").exists()
    assert (tmp_path / "1.saved").exists()


def test_no_rank_survives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, subprocess\nfrom fairway import launch\nfrom fairway.core.log import silent\n"
        "popen = subprocess.Popen\n"
        f"rank = {RANK + 'time.sleep(60)'!r}\n"
        f"other = lambda command, **settings: popen([sys.executable, '-c', rank, {str(tmp_path)!r}], **settings)\n"
        "launch.subprocess.Popen = other\n"
        "launch.supervise(launch.Job(('train',), 2), silent)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.pids"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    ranks = [int(path.read_text().split()[0]) for path in tmp_path.glob("*.pids")]
    supervisor.kill()
    supervisor.wait()
    while any(psutil.pid_exists(rank) and psutil.Process(rank).status() != "zombie" for rank in ranks):
        assert time.monotonic() < deadline, "a rank outlived its supervisor"
        time.sleep(0.05)
    assert len(ranks) == 2


def test_no_ranks_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 ranks"):
        supervise(Job(("train",), 0), silent)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "how"), [(0, signal.SIGKILL), (3, signal.SIGKILL), (0, signal.SIGSTOP), (2, signal.SIGSTOP)]
)
def test_four_ranks_recover_from_a_lost_one_and_end_where_an_undisturbed_run_does(
    tmp_path: Path, victim: int, how: int
) -> None:
    calm = undisturbed(tmp_path / "calm")
    found = recover(tmp_path / "hit", victim, how)
    assert found.seconds < 60
    assert not found.orphans
    assert found.steps == list(range(1, STEPS + 1))
    assert found.losses == pytest.approx(calm, rel=1e-6)
