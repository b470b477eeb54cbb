"""The corpus read once: distinct, non-empty documents in one temporary file, so that later passes see the
same text.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fairway.core import storage
from fairway.core.errors import DataError
from fairway.data.parts import Document

DIGEST_BYTES = 16


def digest_of(data: bytes) -> bytes:
    """The first 16 bytes of a document's SHA-256."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


@dataclass
class Tally:
    """A number of documents and their raw bytes."""

    documents: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """Counts one more document."""
        self.documents += 1
        self.bytes += size


@dataclass
class Spool:
    """Documents on disk with their digests and places; `dropped` counts what was read and not kept, by
    reason.
    """

    path: Path
    digests: list[bytes] = field(default_factory=list)
    ends: "array[int]" = field(default_factory=lambda: array("Q"))
    read: Tally = field(default_factory=Tally)
    dropped: dict[str, Tally] = field(default_factory=dict)

    def size(self, place: int) -> int:
        """Raw bytes of one document."""
        return self.ends[place] - (self.ends[place - 1] if place else 0)

    def texts(self, places: Iterable[int]) -> Iterator[bytes]:
        """The documents at some places, in that order."""
        with open(self.path, "rb") as file:
            for place in places:
                size = self.size(place)
                file.seek(self.ends[place] - size)
                yield file.read(size)


def spool(documents: Iterable[Document], path: Path, max_bytes: int | None, progress: Callable[[int], None]) -> Spool:
    """Reads documents up to `max_bytes`, of which the first that does not fit ends the reading.

    Empty and repeated documents are dropped and counted. Raises `DataError` where none is left.
    """
    result = Spool(path)
    seen: set[bytes] = set()
    kept = 0
    with storage.atomic(path) as file:
        for document in documents:
            size = len(document.data)
            result.read.add(size)
            digest = digest_of(document.data)
            beyond = max_bytes is not None and kept + size > max_bytes
            reason = "empty" if not size else "duplicate" if digest in seen else "beyond_max_bytes" if beyond else None
            if reason is not None:
                result.dropped.setdefault(reason, Tally()).add(size)
                if reason == "beyond_max_bytes":
                    break
                continue
            file.write(document.data)
            kept += size
            seen.add(digest)
            result.digests.append(digest)
            result.ends.append(kept)
            progress(kept)
    if not result.digests:
        raise DataError(f"The source gives no text: {_told(result)}.")
    return result


def _told(result: Spool) -> str:
    reasons = [f"{tally.documents} {name.replace('_', ' ')}" for name, tally in sorted(result.dropped.items())]
    return f"{result.read.documents} documents were read" + (f", of them {', '.join(reasons)}" if reasons else "")
