"""The append-only file of JSON lines."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairway.core import storage
from fairway.core.errors import StorageError


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_full_disk_tears_no_line_of_a_journal(tmp_path: Path) -> None:
    done = run(
        """
        import resource, sys
        from pathlib import Path
        from fairway.core.errors import StorageError
        from fairway.core.storage import Journal
        journal = Journal(Path(sys.argv[1]))
        journal.append({"step": 0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, resource.RLIM_INFINITY))
        try:
            journal.append({"step": 1, "text": "x" * 100})
        except StorageError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        journal.append({"step": 2})
        """,
        tmp_path / "metrics.jsonl",
    )
    assert done.returncode == 0, done.stderr
    assert "no room" in done.stdout
    assert [record["step"] for record in storage.read_journal(tmp_path / "metrics.jsonl")] == [0, 2]


@given(
    st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.floats(allow_nan=False)), max_size=6),
    st.integers(0, 400),
)
def test_a_journal_cut_at_any_byte_keeps_every_whole_line(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "journal.jsonl"
    path.unlink(missing_ok=True)
    with storage.Journal(path) as journal:
        for record in records:
            journal.append(record)
    data = path.read_bytes()
    assert storage.read_journal(path) == records
    path.write_bytes(data[:cut])
    whole = data[:cut].count(b"\n")
    with storage.Journal(path) as journal:
        journal.append({"after": "the cut"})
    assert storage.read_journal(path) == [*records[:whole], {"after": "the cut"}]


def test_a_torn_tail_longer_than_a_block_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * 200_000)
    storage.Journal(path).close()
    assert path.read_bytes() == b'{"a": 1}\n'


def test_a_line_killed_while_it_is_appended_costs_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = """
        import sys
        from pathlib import Path
        from fairway.core.storage import Journal, read_journal
        journal = Journal(Path(sys.argv[1]))
        step = len(read_journal(Path(sys.argv[1])))
        print("ready", flush=True)
        while True:
            journal.append({"step": step, "text": "x" * 300})
            step += 1
        """
    for delay in (0.0, 0.003, 0.01):
        command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=delay)
            process.send_signal(signal.SIGKILL)
    steps = [record["step"] for record in storage.read_journal(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 3


def test_a_journal_goes_on_after_records_were_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with storage.Journal(path) as journal:
        for step in range(5):
            journal.append({"step": step})
        journal.keep(lambda record: record["step"] < 2)
        journal.append({"step": 2})
    assert [record["step"] for record in storage.read_journal(path)] == [0, 1, 2]


def test_a_journal_damaged_in_the_middle_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(StorageError, match="cannot be read"):
        storage.read_journal(path)


def test_a_missing_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert storage.read_journal(tmp_path / "journal.jsonl") == []
