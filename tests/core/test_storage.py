"""Files and folders that are whole or not there, whatever happens."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.crashing import PLANTED, SCENARIOS
from fairway.core import storage
from fairway.core.errors import StorageError

HERE = Path(__file__).parent


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def crash_everywhere(scenario: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "crashing.py"), scenario, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def sealed(folder: Path, **extra: Any) -> Path:
    def fill(temporary: Path) -> None:
        storage.write_bytes(temporary / "weights", bytes(range(256)) * 3)
        storage.write_text(temporary / "deep" / "notes", "zwölf Boxkämpfer")

    storage.replace_folder(folder, fill, {"step": 3, **extra})
    return folder


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_crash_at_any_operation_leaves_the_old_or_the_new(scenario: str, tmp_path: Path) -> None:
    done = crash_everywhere(scenario, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5


@pytest.mark.parametrize("scenario", PLANTED)
def test_a_change_that_loses_data_in_a_crash_is_caught(scenario: str, tmp_path: Path) -> None:
    done = crash_everywhere(scenario, tmp_path / "home")
    assert done.returncode != 0


def test_a_file_is_flushed_before_its_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        order.append("folder" if path.is_dir() else f"file of {path.stat().st_size}")
        fsync(handle)

    def renamed(source: Path, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(storage.os, "fsync", synced)
    monkeypatch.setattr(storage.os, "replace", renamed)
    storage.write_bytes(tmp_path / "file", b"12345")
    assert order == ["file of 5", "rename", "folder"]


def test_the_manifest_is_written_after_every_file_it_lists(tmp_path: Path) -> None:
    written: list[str] = []

    def watch(point: str) -> None:
        if point == "storage.renamed":
            written[:] = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
            if storage.MANIFEST in written:
                assert {"weights", "notes"} <= set(written)

    with storage.faults(watch):
        sealed(tmp_path / "folder")
    assert storage.MANIFEST in written


def test_an_exception_while_writing_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.write_bytes(path, b"old")
    writing = storage.atomic(path)
    file = writing.__enter__()
    file.write(b"half")
    assert not writing.__exit__(RuntimeError, RuntimeError("stop"), None)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("limit", [0, 1, 4095, 4096, 50_000])
def test_a_full_disk_leaves_the_old_content_and_says_how_much_room_is_left(limit: int, tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "file", b"old")
    sealed(tmp_path / "checkpoint")
    done = run(
        """
        import resource, sys
        from pathlib import Path
        from fairway.core import storage
        from fairway.core.errors import StorageError
        home, limit = Path(sys.argv[1]), int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for change in (
            lambda: storage.write_bytes(home / "file", b"x" * 60_000),
            lambda: storage.replace_folder(
                home / "checkpoint", lambda folder: storage.write_bytes(folder / "weights", b"x" * 60_000), {}
            ),
        ):
            try:
                change()
            except StorageError as error:
                print(error)
        """,
        tmp_path,
        limit,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("no room" in line and "bytes free" in line and str(tmp_path) in line for line in lines)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert storage.unseal(tmp_path / "checkpoint")["step"] == 3
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "file"]


def test_a_folder_that_may_not_be_written_is_reported_in_one_line() -> None:
    done = run(
        """
        import os, sys, tempfile
        from pathlib import Path
        from fairway.core import storage
        from fairway.core.errors import StorageError
        home = Path(tempfile.mkdtemp())
        os.chmod(home, 0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)
        changes = {
            "write": lambda: storage.write_bytes(home / "file", b"x"),
            "folder": lambda: storage.replace_folder(home / "folder", lambda folder: None, {}),
            "journal": lambda: storage.Journal(home / "journal"),
            "lock": lambda: storage.locked(home, "train").__enter__(),
        }
        for name, change in changes.items():
            try:
                change()
                print(name, "was written")
            except StorageError as error:
                print(name, "refused", home in Path(str(error).split(" could")[0]).parents)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} refused True" for name in ("write", "folder", "journal", "lock")]


@pytest.mark.parametrize("code", [errno.EIO, errno.EDQUOT, errno.ENOSPC])
def test_an_error_of_the_disk_while_flushing_leaves_the_old_content(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    storage.write_bytes(path, b"old")

    monkeypatch.setattr(storage.os, "fsync", Mock(side_effect=OSError(code, os.strerror(code))))
    with pytest.raises(StorageError, match="could not be written"):
        storage.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_every_flipped_bit_of_a_sealed_folder_is_found(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "folder")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        intact = path.read_bytes()
        for position in range(len(intact)):
            for bit in range(8) if len(intact) < 100 else (position % 8, (position * 5 + 3) % 8):
                damaged = bytearray(intact)
                damaged[position] ^= 1 << bit
                path.write_bytes(bytes(damaged))
                with pytest.raises(StorageError):
                    storage.unseal(folder)
        path.write_bytes(intact)
    assert storage.unseal(folder)["step"] == 3


def test_every_truncation_and_every_added_byte_is_found(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "folder")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        intact = path.read_bytes()
        for changed in [intact[:size] for size in range(len(intact))] + [
            intact + b"\0",
            intact + b"\n",
            b" " + intact,
        ]:
            path.write_bytes(changed)
            with pytest.raises(StorageError):
                storage.unseal(folder)
        path.write_bytes(intact)


def test_two_swapped_files_and_a_missing_one_are_found(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        storage.write_bytes(folder / "one", b"1111")
        storage.write_bytes(folder / "two", b"2222")

    folder = tmp_path / "folder"
    storage.replace_folder(folder, fill, {})
    (folder / "one").write_bytes(b"2222")
    (folder / "two").write_bytes(b"1111")
    with pytest.raises(StorageError, match="damaged"):
        storage.unseal(folder)
    (folder / "one").unlink()
    with pytest.raises(StorageError, match="one is missing"):
        storage.unseal(folder)


def test_the_quick_check_still_compares_sizes(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "folder")
    (folder / "weights").write_bytes(b"\0" * 768)
    assert storage.unseal(folder, check=False)["step"] == 3
    (folder / "weights").write_bytes(b"\0" * 767)
    with pytest.raises(StorageError, match="767 bytes"):
        storage.unseal(folder, check=False)


def forged(folder: Path, content: Any) -> None:
    digest = storage._digest(content) if isinstance(content, dict) else ""
    value = {**content, storage.DIGEST: digest} if isinstance(content, dict) else content
    storage.write_json(folder / storage.MANIFEST, value)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"files": []},
        {"files": {"../secret": {"bytes": 1, "sha256": "0"}}},
        {"files": {"/etc/hostname": {"bytes": 1, "sha256": "0"}}},
        {"files": {"x\0y": {"bytes": 1, "sha256": "0"}}},
        {"files": {"x" * 5000: {"bytes": 1, "sha256": "0"}}},
        {"files": {"weights": 3}},
        {"files": {"weights": {}}},
    ],
)
def test_a_forged_manifest_is_refused(content: Any, tmp_path: Path) -> None:
    folder = sealed(tmp_path / "folder")
    forged(folder, content)
    with pytest.raises(StorageError):
        storage.unseal(folder)


def test_a_folder_without_a_manifest_is_not_valid(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        storage.unseal(tmp_path)


@pytest.mark.parametrize("text", ["{", "nonsense", "\udcff", "[" * 100_000])
def test_damaged_json_is_reported_with_its_path(text: str, tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StorageError, match=r"values\.json cannot be read"):
        storage.read_json(path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_json_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    storage.write_json(path, value)
    assert storage.read_json(path) == value


def test_a_second_process_is_refused_until_the_first_one_is_killed(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from fairway.core.storage import locked
        with locked(Path(sys.argv[1]), "train"):
            print("locked", flush=True)
            time.sleep(600)
        """
    for _ in range(3):
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(StorageError, match="before you train"), storage.locked(tmp_path, "train"):
                pass
            process.kill()
            process.wait()
        with storage.locked(tmp_path, "train"):
            pass


def test_taking_the_lock_clears_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".step-7.{dead.pid}.tmp").mkdir()
    (tmp_path / f".step-7.{dead.pid}.tmp" / "weights").write_bytes(b"half")
    (tmp_path / f".report.html.{dead.pid}.tmp").write_bytes(b"half")
    (tmp_path / f".report.html.{os.getpid()}.tmp").write_bytes(b"being written")
    (tmp_path / ".notes.tmp").write_bytes(b"not ours")
    with storage.locked(tmp_path, "train"):
        left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([".lock", ".notes.tmp", f".report.html.{os.getpid()}.tmp"])


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert storage.free_bytes(tmp_path / "not" / "yet" / "there") > 0


def test_every_fault_point_is_reached_by_some_scenario(tmp_path: Path) -> None:
    source = Path(storage.__file__).read_text()
    named = {line.split('"')[1] for line in source.splitlines() if line.strip().startswith("fault_point(")}
    seen: set[str] = set()
    with storage.faults(seen.add):
        storage.remove_folder(sealed(tmp_path / "folder"))
        with storage.Journal(tmp_path / "journal") as journal:
            journal.append({})
    assert seen == named


def test_a_folder_is_replaced_where_the_system_cannot_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sealed(tmp_path / "folder")
    monkeypatch.setattr(storage.ctypes, "CDLL", Mock(return_value=object()))
    sealed(folder, run="second")
    assert storage.unseal(folder)["run"] == "second"
    assert os.listdir(tmp_path) == ["folder"]


def test_manifest_extras_come_back_as_given(tmp_path: Path) -> None:
    manifest = storage.unseal(sealed(tmp_path / "folder", facts={"loss": 1.5}))
    assert set(manifest) == {"files", "step", "facts"}
    assert manifest["facts"] == {"loss": 1.5}
    assert set(manifest["files"]) == {"weights", "deep/notes"}
    assert json.loads((tmp_path / "folder" / storage.MANIFEST).read_text())["step"] == 3
