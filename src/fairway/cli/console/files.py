"""Reading the files that a verb is given."""

from pathlib import Path

from fairway.core.errors import DataError


def read_file(path: Path) -> bytes:
    """A whole file; raises `DataError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
