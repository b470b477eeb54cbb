"""Files, folders and patterns of text, read as raw bytes in whatever encoding they have.

A file is one document; one above `document_bytes` becomes several, cut behind the last line end that fits, or
at exactly that size where a line is longer. So one big file still gives documents to train on and others to
validate on, and a line of any length is read in bounded memory.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from fairway.core.budget import Bytes
from fairway.core.config import Source
from fairway.data.files import Paths, find_files, opened
from fairway.data.parts import Document, SourceConfig

SOURCE = Source("Fairway", 2025, "this package")


class Config(SourceConfig):
    """Where the text lies, and how long a document may be."""

    path: Paths
    document_bytes: Bytes = Field(default=32_768)
    """Longest document; longer files are cut into documents of at most this many bytes."""

    def documents(self) -> Iterator[Document]:
        for path in find_files(self.path):
            yield from self._of_file(path)

    def _of_file(self, path: Path) -> Iterator[Document]:
        with opened(path) as file:
            rest, start = file.read(self.document_bytes + 1), 0
            if len(rest) <= self.document_bytes:
                yield Document(str(path), rest)
                return
            while rest:
                end = self._cut(rest)
                yield Document(f"{path}@{start}", rest[:end])
                start += end
                rest = rest[end:]
                rest += file.read(self.document_bytes + 1 - len(rest))

    def _cut(self, data: bytes) -> int:
        if len(data) <= self.document_bytes:
            return len(data)
        line_end = data.rfind(b"\n", 0, self.document_bytes)
        return line_end + 1 if line_end >= 0 else self.document_bytes
