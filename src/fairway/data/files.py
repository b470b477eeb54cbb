"""Finding and reading the files that a person names: files, folders and patterns, compressed or not."""

import bz2
import glob
import gzip
import io
import lzma
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

from pydantic import BeforeValidator, Field

from fairway.core.errors import DataError

try:
    import zstandard
except ImportError:
    zstandard = None

_ZSTD_ERRORS: tuple[type[Exception], ...] = () if zstandard is None else (zstandard.ZstdError,)


_PACKED = (".gz", ".xz", ".bz2", ".zst")
_PACKED_AT_ONCE = 2048


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, (str, os.PathLike)) else value


Paths = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
"""A file, a folder, a pattern such as `notes/**/*.md`, or a list of them."""


def find_files(paths: Sequence[str], endings: tuple[str, ...] = ("",)) -> list[Path]:
    """The files meant by the paths, each once, sorted within each path; folders give what ends as asked.

    Hidden files and folders inside a folder are passed over. Raises `DataError` for a path that gives
    nothing.
    """
    found: dict[Path, None] = {}
    for path in paths:
        matches = [Path(path)] if os.path.lexists(path) else [Path(name) for name in glob.glob(path, recursive=True)]
        files = sorted({file for match in matches for file in _inside(match, endings)}, key=os.fsencode)
        if not files:
            raise DataError(_nothing_there(path, bool(matches), endings))
        found |= dict.fromkeys(files)
    return list(found)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The content of a file as a stream, unpacked by its ending (.gz, .xz, .bz2, .zst).

    Whatever is wrong with the file or its compression ends in a `DataError` naming it.
    """
    try:
        with open(path, "rb") as file:
            if path.suffix in _PACKED and not file.peek(1):
                raise EOFError("a packed file is never empty")
            yield _unpacked(path, file)
    except (OSError, EOFError, lzma.LZMAError, *_ZSTD_ERRORS) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _unpacked(path: Path, file: BinaryIO) -> BinaryIO:
    match path.suffix:
        case ".gz":
            return cast(BinaryIO, gzip.GzipFile(fileobj=file))
        case ".xz":
            return cast(BinaryIO, lzma.LZMAFile(file))
        case ".bz2":
            return cast(BinaryIO, bz2.BZ2File(file))
        case ".zst":
            if zstandard is None:
                raise DataError(f"Reading {path} needs the zstandard package: pip install 'fairway[zstd]'.")
            return cast(BinaryIO, io.BufferedReader(_Zstandard(file)))
    return file


class _Zstandard(io.RawIOBase):
    """Frames of zstd as one stream; unlike the package's own reader it refuses a file that is cut short."""

    def __init__(self, file: BinaryIO) -> None:
        assert zstandard is not None
        self._file = file
        self._library = zstandard
        self._frame = self._library.ZstdDecompressor().decompressobj()
        self._inside = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._frame.unused_data or self._file.read(_PACKED_AT_ONCE)
            if not packed:
                if self._inside:
                    raise EOFError("the file is cut short")
                return 0
            if self._frame.eof:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(packed)
            self._inside = not self._frame.eof
        count = min(len(self._ready), len(buffer))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _inside(path: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, children, files in os.walk(path):
        children[:] = [child for child in children if not child.startswith(".")]
        for name in files:
            file = Path(folder) / name
            if not name.startswith(".") and name.endswith(endings) and file.is_file():
                yield file


def _nothing_there(path: str, exists: bool, endings: tuple[str, ...]) -> str:
    wanted = " or ".join(ending for ending in endings if ending)
    if exists:
        return f"The folder {path} holds no {wanted + ' ' if wanted else ''}files."
    return f"There is no file or folder {path}, and no file matches it as a pattern."
