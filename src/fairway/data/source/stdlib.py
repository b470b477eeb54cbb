"""The text of the running Python's own standard library, one document a file: real text on every machine.

Its tests, caches, installed packages and the files generated for one build are left out.
"""

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from fairway.core.config import Source
from fairway.core.errors import DataError
from fairway.data.parts import Document, SourceConfig

SOURCE = Source("Python Software Foundation", 1991, "https://docs.python.org/3/library/")

_LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


class Config(SourceConfig):
    """The standard library has no settings."""

    def documents(self) -> Iterator[Document]:
        home = Path(sysconfig.get_paths()["stdlib"])
        names = sorted(_modules(home))
        if not names:
            raise DataError(f"This Python has no standard library in source form at {home}; use another source.")
        for name in names:
            try:
                yield Document(name, (home / name).read_bytes())
            except OSError as error:
                raise DataError(f"{home / name} cannot be read: {error.strerror or error}.") from None


def _modules(home: Path) -> Iterator[str]:
    for folder, children, files in os.walk(home):
        children[:] = [child for child in children if child not in _LEFT_OUT]
        for file in files:
            if file.endswith(".py") and not file.startswith("_sysconfigdata"):
                yield (Path(folder) / file).relative_to(home).as_posix()
