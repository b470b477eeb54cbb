"""Training batches as a pure function of (manifest, seed, step, shape): nothing to save, nothing to lose on
resume.

An epoch cuts the token stream into windows of T + 1 tokens that overlap by one, so that no target is
repeated, behind a random offset of its own, and visits them in the order of a keyed permutation. Row r of
step s is window s * B + r of the endless row of epochs. Tensor-shape suffixes: B rows, T positions (one more
than the context).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairway.core.errors import ConfigError, DataError
from fairway.core.seed import Permutation, derive
from fairway.data.manifest import Manifest


class Batch(NamedTuple):
    """Rows of consecutive tokens: the first T are inputs, the last T are targets."""

    tokens_BT: Tensor
    """(B, context + 1) int64."""
    starts_BT: Tensor
    """(B, context + 1) bool: True where a document begins."""


class Batches:
    """The training text of a manifest as batches."""

    def __init__(self, manifest: Manifest, seed: int) -> None:
        self._stream = manifest.tokens("train")
        self._boundary = manifest.tokenizer.boundary
        self._seed = seed

    def at(self, step: int, batch: int, context: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of one step, or the rows of it that belong to one of `world` equal ranks.

        Raises `DataError` where the text is shorter than one window, `ConfigError` where the rows cannot be
        shared.
        """
        if batch % world:
            raise ConfigError(f"{batch} rows cannot be shared by {world} ranks; a multiple of {world} would work.")
        assert 0 <= rank < world
        rows = batch // world
        return self.rows(step * batch + rank * rows, rows, context)

    def rows(self, first: int, count: int, context: int) -> Batch:
        """`count` rows from row `first` of the endless row of epochs on, for steps of changing shapes."""
        tokens = np.empty((count, context + 1), np.int64)
        for row, start in enumerate(self._window_starts(first, count, context)):
            self._stream.read(start, tokens[row])
        tokens_BT = torch.from_numpy(tokens)
        return Batch(tokens_BT, tokens_BT == self._boundary)

    def epoch(self, step: int, batch: int, context: int) -> int:
        """How many whole passes over the text lie before this step."""
        return step * batch // self._windows(context)

    def _windows(self, context: int) -> int:
        if len(self._stream) < context + 1:
            raise DataError(f"The text has {len(self._stream)} tokens; a context of {context} needs {context + 1}.")
        # One window fewer than would fit leaves room for the epoch's offset, which reaches to the end.
        return max(1, (len(self._stream) - context) // context)

    def _window_starts(self, first: int, rows: int, context: int) -> list[int]:
        windows = self._windows(context)
        offsets = len(self._stream) - windows * context
        place = first + np.arange(rows)
        starts = np.empty(rows, np.int64)
        for epoch in np.unique(place // windows).tolist():
            inside = place // windows == epoch
            order = Permutation(windows, derive(self._seed, "batches", "order", epoch))
            offset = derive(self._seed, "batches", "offset", epoch) % offsets
            starts[inside] = order(place[inside] % windows) * context + offset
        return starts.tolist()
