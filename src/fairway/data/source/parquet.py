"""Columns of Parquet files (extra `parquet`); one row is one document."""

from collections.abc import Iterator
from typing import Any

from fairway.core.config import Source
from fairway.core.errors import DataError
from fairway.data.files import Paths, find_files
from fairway.data.parts import Document, SourceConfig

try:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile
except ImportError:
    ParquetFile = None

SOURCE = Source("Apache Software Foundation", 2013, "https://parquet.apache.org")

_ROWS = 256


class Config(SourceConfig):
    """Where the files lie, and which column holds the text."""

    path: Paths
    field: str = "text"

    def documents(self) -> Iterator[Document]:
        if ParquetFile is None:
            raise DataError("Reading Parquet needs the pyarrow package: pip install 'fairway[parquet]'.")
        for path in find_files(self.path, (".parquet",)):
            try:
                with ParquetFile(path) as file:
                    if self.field not in file.schema_arrow.names:
                        seen = ", ".join(file.schema_arrow.names)
                        raise DataError(f'{path} has no column "{self.field}"; it has {seen:.200}.')
                    yield from self._rows(str(path), file)
            except (OSError, ArrowException) as error:
                raise DataError(f"{path} cannot be read as Parquet: {error}") from None

    def _rows(self, path: str, file: Any) -> Iterator[Document]:
        row = 0
        for batch in file.iter_batches(_ROWS, columns=[self.field]):
            for value in batch.column(0).to_pylist():
                if not isinstance(value, (str, bytes)):
                    raise DataError(f'{path}, row {row}: "{self.field}" is {type(value).__name__}; it must be text.')
                yield Document(f"{path}:{row}", value.encode() if isinstance(value, str) else value)
                row += 1
