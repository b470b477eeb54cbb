"""Files damaged in every common way, and whether a reader noticed before it used anything."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from fairway.artifact import format as artifact
from fairway.core.errors import ArtifactError, CheckpointError, DataError
from fairway.data.manifest import Manifest
from fairway.train import checkpoint

PAGE = 4096
KINDS = ("bit flipped", "cut short", "page zeroed", "byte added", "files swapped", "file gone")


@dataclass
class Verdicts:
    """What a series of damages came to."""

    trials: int = 0
    refused: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)


class Damage:
    """Damages one of several files, lets a reader look, and puts everything back."""

    def __init__(self, files: Sequence[Path], read: Callable[[], object], refusal: type[Exception], seed: int) -> None:
        self.files, self.read, self.refusal = list(files), read, refusal
        self.good = {path: path.read_bytes() for path in files}
        self.draw = random.Random(seed)

    def run(self, trials: int) -> Verdicts:
        """The verdicts of so many damages; every read before and after them must succeed."""
        self.read()
        verdicts = Verdicts()
        while verdicts.trials < trials:
            kind = self.draw.choice(KINDS)
            bad = self._bad(kind)
            if any(data != self.good[path] for path, data in bad.items()):
                self._try(kind, bad, verdicts)
        self.read()
        return verdicts

    def _bad(self, kind: str) -> dict[Path, bytes | None]:
        """The content that some files get; None for a file that goes."""
        path = self.draw.choice(self.files)
        data = self.good[path]
        place = self.draw.randrange(max(1, len(data)))
        if kind == "bit flipped" and data:
            return {path: data[:place] + bytes([data[place] ^ 1 << self.draw.randrange(8)]) + data[place + 1 :]}
        if kind == "cut short":
            return {path: data[:place]}
        if kind == "page zeroed":
            start = place // PAGE * PAGE
            return {path: data[:start] + bytes(len(data[start : start + PAGE])) + data[start + PAGE :]}
        if kind == "files swapped":
            other = self.draw.choice(self.files)
            return {path: self.good[other], other: data}
        if kind == "file gone":
            return {path: None}
        return {path: data[:place] + bytes([self.draw.randrange(256)]) + data[place:]}

    def _try(self, kind: str, bad: dict[Path, bytes | None], verdicts: Verdicts) -> None:
        for path, data in bad.items():
            path.unlink() if data is None else path.write_bytes(data)
        verdicts.trials += 1
        verdicts.by_kind[kind] += 1
        try:
            self.read()
            verdicts.missed.append(f"{kind}: {', '.join(path.name for path in bad)}")
        except self.refusal:
            verdicts.refused += 1
        finally:
            for path in bad:
                path.write_bytes(self.good[path])


def checkpoint_damage(folder: Path, seed: int) -> Damage:
    """Damage to every file of a checkpoint; a tensor made before the refusal counts as none."""

    def used(_: bytes) -> None:
        raise AssertionError("a tensor was read from a damaged checkpoint")

    def read() -> None:
        # The good state must be readable too, so tensors are forbidden only where the checksums do not hold.
        if all(path.exists() and path.read_bytes() == data for path, data in made.good.items()):
            checkpoint.read_checkpoint(folder)
            return
        with patch.object(checkpoint, "load", used):
            checkpoint.read_checkpoint(folder)

    files = sorted(path for path in folder.iterdir() if path.is_file())
    made = Damage(files, read, CheckpointError, seed)
    return made


def shard_damage(folder: Path, seed: int) -> Damage:
    """Damage to every file of a prepared folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return Damage(files, lambda: Manifest.read(folder), DataError, seed)


def artifact_damage(path: Path, seed: int) -> Damage:
    """Damage to an artifact; the plan, and so every tensor, may only be made after the checksum held."""
    return Damage([path], lambda: artifact.read(path), ArtifactError, seed)
