"""Data sets of the Hugging Face hub, streamed (extra `hub`); one row is one document."""

import importlib
from collections.abc import Iterator
from typing import Any

from fairway.core.config import Source
from fairway.core.errors import DataError
from fairway.data.parts import Document, SourceConfig

SOURCE = Source("Lhoest et al.", 2021, "arXiv:2109.02846")


class Config(SourceConfig):
    """Which data set, which part of it, and which field holds the text."""

    name: str
    """As on the hub (`owner/name`), or a folder or format name that `datasets` understands."""
    subset: str | None = None
    split: str = "train"
    field: str = "text"
    files: tuple[str, ...] = ()
    """Files inside the data set, or local files for a format name such as `json`; all of them by default."""

    def documents(self) -> Iterator[Document]:
        row = 0
        try:
            for record in _rows(self):
                text = record.get(self.field)
                if not isinstance(text, str):
                    seen = ", ".join(sorted(record))
                    raise DataError(f'{self.name}, row {row} : no text in "{self.field}"; its fields are {seen:.200}.')
                yield Document(f"{self.name}:{row}", text.encode("utf-8", "surrogatepass"))
                row += 1
        except (DataError, GeneratorExit, KeyboardInterrupt):
            raise
        except Exception as error:
            raise DataError(f"{self.name} cannot be read from the hub at row {row}: {error}") from None


def _rows(config: Config) -> Iterator[dict[str, Any]]:
    # Loading `datasets` takes seconds, too long for merely listing the sources.
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DataError("Reading from the hub needs the datasets package: pip install 'fairway[hub]'.") from None
    files = list(config.files) or None
    return iter(datasets.load_dataset(config.name, config.subset, split=config.split, data_files=files, streaming=True))
