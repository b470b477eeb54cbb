"""Runs one change of the disk again and again, killing the process before each of its operations in turn.

    python crashing.py SCENARIO FOLDER

Each attempt is a forked child that ends with `os._exit`, as by SIGKILL: no `finally` runs.
What counts as an operation: every open, rename, removal, new folder and named fault point. Prints the number
of points, and fails on the first one after which the folder breaks its promise.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fairway.core import storage
from fairway.core.errors import StorageError

OLD, NEW = b"old" * 1000, b"new" * 2000
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
DONE = 17


@dataclass(frozen=True)
class Scenario:
    """What stands there before, the change, and `check`, which tells what a reader finds whenever it died."""

    before: Callable[[Path], None]
    change: Callable[[Path], None]
    check: Callable[[Path], str]
    outcomes: frozenset[str]


def fill(data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        storage.write_bytes(folder / "weights", data)
        storage.write_bytes(folder / "deep" / "state", data[::-1])

    return write


def folder_state(folder: Path) -> str:
    """`old` or `new` for a valid folder, `absent` for one that no reader takes for valid."""
    try:
        storage.unseal(folder)
    except StorageError:
        assert not (folder / storage.MANIFEST).exists(), f"{folder} is damaged but claims to be valid"
        return "absent"
    content = (folder / "weights").read_bytes()
    assert (folder / "deep" / "state").read_bytes() == content[::-1]
    return {OLD: "old", NEW: "new"}[content]


def file_state(path: Path) -> str:
    return {OLD: "old", NEW: "new"}[path.read_bytes()] if path.exists() else "absent"


def kept_and(state: Callable[[Path], str], kept: Path, other: Path) -> str:
    assert state(kept) == "old", f"{kept} was lost while {other} was written"
    return state(other)


def journal_state(path: Path) -> str:
    steps = [record["step"] for record in storage.read_journal(path)]
    assert steps == list(range(len(steps))), steps
    return str(len(steps))


def append_twice(path: Path) -> None:
    with storage.Journal(path) as journal:
        for step in range(len(storage.read_journal(path)), 3):
            journal.append({"step": step})


def write_in_place(path: Path) -> None:
    with open(path, "wb") as file:
        storage.fault_point("emptied")
        file.write(NEW)


def delete_first(folder: Path) -> None:
    shutil.rmtree(folder)
    storage.replace_folder(folder, fill(NEW), {})


def torn(path: Path) -> None:
    path.write_bytes(b'{"step": 0}\n{"step": 1, "los')


def keep_first(path: Path) -> None:
    with storage.Journal(path) as journal:
        journal.keep(lambda record: record["step"] < 1)


def three_records(path: Path) -> None:
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(3)))


SCENARIOS = {
    "new file": Scenario(
        before=lambda home: home.mkdir(exist_ok=True),
        change=lambda home: storage.write_bytes(home / "a" / "file", NEW),
        check=lambda home: file_state(home / "a" / "file"),
        outcomes=frozenset({"absent", "new"}),
    ),
    "file over file": Scenario(
        before=lambda home: storage.write_bytes(home / "file", OLD),
        change=lambda home: storage.write_bytes(home / "file", NEW),
        check=lambda home: file_state(home / "file"),
        outcomes=frozenset({"old", "new"}),
    ),
    "folder beside folder": Scenario(
        before=lambda home: storage.replace_folder(home / "step-1", fill(OLD), {}),
        change=lambda home: storage.replace_folder(home / "step-2", fill(NEW), {}),
        check=lambda home: kept_and(folder_state, home / "step-1", home / "step-2"),
        outcomes=frozenset({"absent", "new"}),
    ),
    "folder over folder": Scenario(
        before=lambda home: storage.replace_folder(home / "shards", fill(OLD), {}),
        change=lambda home: storage.replace_folder(home / "shards", fill(NEW), {}),
        check=lambda home: folder_state(home / "shards"),
        outcomes=frozenset({"old", "new"}),
    ),
    "removal": Scenario(
        before=lambda home: storage.replace_folder(home / "step-1", fill(OLD), {}),
        change=lambda home: storage.remove_folder(home / "step-1"),
        check=lambda home: folder_state(home / "step-1"),
        outcomes=frozenset({"old", "absent"}),
    ),
    "journal": Scenario(
        before=lambda home: torn(home / "metrics.jsonl"),
        change=lambda home: append_twice(home / "metrics.jsonl"),
        check=lambda home: journal_state(home / "metrics.jsonl"),
        outcomes=frozenset({"1", "2", "3"}),
    ),
    "journal cut": Scenario(
        before=lambda home: three_records(home / "metrics.jsonl"),
        change=lambda home: keep_first(home / "metrics.jsonl"),
        check=lambda home: journal_state(home / "metrics.jsonl"),
        outcomes=frozenset({"3", "1"}),
    ),
}

PLANTED = {
    "planted: written in place": Scenario(
        before=lambda home: storage.write_bytes(home / "file", OLD),
        change=lambda home: write_in_place(home / "file"),
        check=lambda home: file_state(home / "file"),
        outcomes=frozenset({"old", "new"}),
    ),
    "planted: deleted first": Scenario(
        before=lambda home: storage.replace_folder(home / "shards", fill(OLD), {}),
        change=lambda home: delete_first(home / "shards"),
        check=lambda home: folder_state(home / "shards"),
        outcomes=frozenset({"old", "new"}),
    ),
}
"""Changes that do lose data, to see that they are caught."""


def change_until(point: int, change: Callable[[], None]) -> bool:
    """Whether the change was killed before its operation number `point`; false where it has fewer."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(*_: object) -> None:
            nonlocal seen
            if seen == point:
                os._exit(0)
            seen += 1

        sys.addaudithook(lambda event, _: count() if event in OPERATIONS else None)
        with storage.faults(count):
            change()
        os._exit(DONE)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, DONE), f"the change failed by itself with {status}"
    return status == 0


def main(name: str, home: Path) -> None:
    scenario = (SCENARIOS | PLANTED)[name]
    outcomes, point, killed = set(), 0, True
    while killed:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        scenario.before(home)
        killed = change_until(point, lambda: scenario.change(home))
        outcomes.add(scenario.check(home))
        with storage.locked(home, "go on"):
            left = [path.name for path in home.rglob("*.tmp")]
            assert not left, f"{left} stayed behind after point {point}"
        scenario.change(home)
        scenario.check(home)
        point += 1
    assert outcomes == scenario.outcomes, f"outcomes {sorted(outcomes)}"
    print(point - 1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
