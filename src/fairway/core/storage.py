"""The only module that writes files.

A file is written to a temporary name in its own folder, flushed to disk, renamed into place, and the folder
is flushed too: at every instant the path holds the old content or the new one, whole. A folder becomes valid
by its manifest, which is written last and holds the size and SHA-256 of every file in it, and its own. Each
step passes a named fault point, so tests can crash the process at any of them.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from fairway.core.errors import StorageError

MANIFEST = "manifest.json"
LOCK = ".lock"
DIGEST = "manifest_sha256"

_fault_hook: Callable[[str], None] | None = None


def fault_point(name: str) -> None:
    """A named instant at which a test may stop the process; does nothing otherwise."""
    if _fault_hook is not None:
        _fault_hook(name)


@contextmanager
def faults(hook: Callable[[str], None]) -> Iterator[None]:
    """Calls `hook(name)` at every fault point inside the block."""
    global _fault_hook
    previous, _fault_hook = _fault_hook, hook
    try:
        yield
    finally:
        _fault_hook = previous


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends well and leaves it untouched otherwise."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            fault_point("storage.opened")
            yield file
            file.flush()
            fault_point("storage.written")
            os.fsync(file.fileno())
        fault_point("storage.synced")
        os.replace(temporary, path)
        fault_point("storage.renamed")
        _sync_folder(path.parent)
        fault_point("storage.folder_synced")
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces the file at `path` by `data`, whole or not at all."""
    with atomic(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replaces the file at `path` by `text` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replaces the file at `path` by readable JSON with sorted keys."""
    write_text(path, _readable(value))


def read_json(path: Path) -> Any:
    """JSON from a file; raises `StorageError` where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} cannot be read as JSON: {error}") from None


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, extra: Mapping[str, Any]) -> None:
    """Makes a folder valid: writes its manifest of every file's size and SHA-256, plus `extra`."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.endswith(".tmp")
    }
    content = {"files": files, **extra}
    write_json(folder / MANIFEST, {**content, DIGEST: _digest(content)})


def unseal(folder: Path, *, check: bool = True) -> dict[str, Any]:
    """The manifest of a sealed folder, once every file agrees with it; raises `StorageError` on damage."""
    manifest = _read_manifest(folder / MANIFEST)
    for name, entry in manifest["files"].items():
        try:
            _compare(folder, name, entry, check)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{folder / MANIFEST} lists {name!r:.80}: {error!r:.80}") from None
    return manifest


def replace_folder(folder: Path, fill: Callable[[Path], None], extra: Mapping[str, Any]) -> None:
    """Writes a sealed folder under a temporary name through `fill` and renames it to `folder`.

    A folder that stood there is swapped out in the same instant where the system can, and deleted last.
    """
    temporary = _temporary(folder)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        seal(temporary, extra)
        fault_point("storage.folder_sealed")
        if folder.exists():
            _exchange(temporary, folder)
        else:
            os.replace(temporary, folder)
        fault_point("storage.folder_renamed")
        _sync_folder(folder.parent)
    except OSError as error:
        raise _explained(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Deletes a sealed folder, manifest first, so that a half-deleted one is never taken for valid."""
    try:
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} could not be deleted: {error.strerror or error}.") from error
    fault_point("storage.unsealed")
    shutil.rmtree(folder, ignore_errors=True)


class Journal:
    """An append-only file of JSON lines; a torn last line is cut when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.lseek(self._file, _end_of_last_line(self._file), os.SEEK_SET)
            os.ftruncate(self._file, os.lseek(self._file, 0, os.SEEK_CUR))
        except OSError as error:
            raise _explained(error, path) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record, whole or not at all."""
        rest = (json.dumps(record, sort_keys=True, allow_nan=True) + "\n").encode()
        start = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            os.ftruncate(self._file, start)
            os.lseek(self._file, start, os.SEEK_SET)
            raise _explained(error, self.path) from error
        fault_point("journal.appended")

    def sync(self) -> None:
        """Flushes everything appended so far to disk."""
        os.fsync(self._file)

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drops every record that `wanted` refuses, as when a run goes on from an earlier step."""
        lines = [json.dumps(record, sort_keys=True) + "\n" for record in read_journal(self.path) if wanted(record)]
        write_text(self.path, "".join(lines))
        os.close(self._file)
        self._file = os.open(self.path, os.O_RDWR)
        os.lseek(self._file, 0, os.SEEK_END)

    def close(self) -> None:
        """Flushes and closes the file."""
        self.sync()
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Every whole record of a journal; a torn last line is left out."""
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from None


@contextmanager
def locked(folder: Path, purpose: str) -> Iterator[None]:
    """Holds the folder's lock, which dies with the process; `StorageError` where another process has it.

    What processes that died left half-written in the folder is deleted.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _explained(error, folder / ".lock") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise StorageError(f"Another process is using {folder}; wait for it before you {purpose} there.") from None
    try:
        _sweep(folder)
        yield
    finally:
        os.close(handle)


def free_bytes(folder: Path) -> int:
    """Free space on the disk that holds `folder` or its nearest existing parent."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _readable(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_readable(content).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    """A manifest whose every byte is as `seal` wrote it, without its own digest."""
    manifest = read_json(path)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise StorageError(f"{path} lists no files; this is not a folder of Fairway.")
    intact = path.read_bytes() == _readable(manifest).encode()
    if manifest.pop(DIGEST, None) != _digest(manifest) or not intact:
        raise StorageError(f"{path} is damaged: its SHA-256 is not the one it names.")
    return manifest


def _compare(folder: Path, name: str, entry: Mapping[str, Any], check: bool) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StorageError(f"{folder / MANIFEST} names {name!r}, which lies outside the folder.")
    if not path.is_file():
        raise StorageError(f"{path} is missing.")
    if path.stat().st_size != entry["bytes"]:
        raise StorageError(f"{path} has {path.stat().st_size} bytes; its manifest says {entry['bytes']}.")
    if check and sha256(path) != entry["sha256"]:
        raise StorageError(f"{path} is damaged: its SHA-256 is not the one in its manifest.")


def _exchange(new: Path, old: Path) -> None:
    """Swaps two folders in one instant (Linux `renameat2`), or by way of a third name elsewhere."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2
    if rename is not None and rename(here, os.fsencode(new), here, os.fsencode(old), exchange) == 0:
        return
    aside = new.with_name(f".{old.name}.old.{os.getpid()}.tmp")
    os.replace(old, aside)
    os.replace(new, old)
    os.replace(aside, new)


def _sweep(folder: Path) -> None:
    for path in list(folder.rglob(".*.tmp")):
        process = path.name.split(".")[-2]
        if process.isdecimal() and not _is_alive(int(process)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _end_of_last_line(file: int) -> int:
    size = os.fstat(file).st_size
    position = size
    while position > 0:
        start = max(0, position - 65536)
        block = os.pread(file, position - start, start)
        newline = block.rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def _explained(error: OSError, path: Path) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = free_bytes(path.parent)
        return StorageError(f"{path} could not be written: no room ({free:,} bytes free). What stood there is intact.")
    return StorageError(f"{path} could not be written: {error.strerror or error}. What stood there is intact.")
