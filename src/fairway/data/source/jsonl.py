"""Lines of JSON objects with the text in one field; plain, .gz, .xz, .bz2 or .zst.

One object is one document. Unpaired surrogates, which JSON can spell and UTF-8 cannot, are kept as the three
bytes that WTF-8 gives them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from fairway.core.budget import Bytes
from fairway.core.config import Source
from fairway.core.errors import DataError
from fairway.data.files import Paths, find_files, opened
from fairway.data.parts import Document, SourceConfig

SOURCE = Source("Ward", 2013, "https://jsonlines.org")

_ENDINGS = tuple(f".{name}{packed}" for name in ("jsonl", "ndjson") for packed in ("", ".gz", ".xz", ".bz2", ".zst"))


class Config(SourceConfig):
    """Where the lines lie, and which field holds the text."""

    path: Paths
    field: str = "text"
    line_bytes: Bytes = Field(default=64_000_000)
    """Longest line that is read; a longer one is refused."""

    def documents(self) -> Iterator[Document]:
        for path in find_files(self.path, _ENDINGS):
            with opened(path) as file:
                number = 0
                while line := file.readline(self.line_bytes + 1):
                    number += 1
                    if len(line) > self.line_bytes:
                        raise DataError(f"{path}, line {number} has more than {self.line_bytes:,} bytes (line_bytes).")
                    if line.strip():
                        yield Document(f"{path}:{number}", self._text(line, path, number))

    def _text(self, line: bytes, path: Path, number: int) -> bytes:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}.") from None
        if not isinstance(record, dict) or self.field not in record:
            seen = f"the fields {', '.join(sorted(record))}" if isinstance(record, dict) else f"a {_kind(record)}"
            raise DataError(f'{path}, line {number} has no field "{self.field}"; it holds {seen:.200}.')
        text = record[self.field]
        if not isinstance(text, str):
            raise DataError(f'{path}, line {number}: "{self.field}" is a {_kind(text)}; it must be a string.')
        return text.encode("utf-8", "surrogatepass")


def _kind(value: object) -> str:
    names = {"dict": "object", "list": "list", "NoneType": "null", "bool": "boolean", "int": "number"}
    return names.get(type(value).__name__, type(value).__name__)
