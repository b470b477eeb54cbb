"""Which tokens a model sees for each prediction: windows over a sequence of targets.

With window L and stride S <= L, window k starts at input k S, sees the inputs up to k S + L and scores the
targets not yet scored: every target exactly once, and every one after the first window with at least L - S +
1 inputs. S = L is the plain evaluation. Scoring, compression and generation all follow this one definition.
Shape key: B batch, T time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairway.core.errors import ConfigError

_BUCKET = 32


@dataclass(frozen=True)
class Window:
    """Inputs [start, stop) of a sequence, which score the targets [first, stop). Target t follows input t."""

    start: int
    first: int
    stop: int


@dataclass(frozen=True)
class Policy:
    """Window and stride in tokens."""

    length: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.length:
            raise ConfigError(f"A stride of {self.stride} was given; 1 to the window of {self.length} would work.")

    def window(self, target: int) -> Window:
        """The window in which this target is scored, cut behind it."""
        if target < self.length:
            return Window(0, 0, target + 1)
        start = -(-(target + 1 - self.length) // self.stride) * self.stride
        return Window(start, start + self.length - self.stride, target + 1)

    def windows(self, targets: int) -> Iterator[Window]:
        """All windows of a sequence."""
        done = start = 0
        while done < targets:
            stop = min(start + self.length, targets)
            yield Window(start, done, stop)
            done = stop
            start += self.stride


@dataclass(frozen=True)
class Batch:
    """Windows that are computed together; rows shorter than the batch are padded on the right."""

    inputs_BT: Tensor
    first: int
    """The position within every row at which its scoring begins."""
    rows: tuple[tuple[int, Window], ...]
    """Of each row, the index of its sequence and its window."""


def batches(sequences: Sequence[np.ndarray], policy: Policy, batch: int) -> Iterator[Batch]:
    """Every window of every sequence once, windows of like length together, at most `batch` of them.

    A sequence is its inputs and, last, its final target: n + 1 tokens hold n targets.
    """
    rows = [(index, window) for index, tokens in enumerate(sequences) for window in policy.windows(len(tokens) - 1)]
    return packed(rows, sequences, policy, batch)


def packed(
    windows: Sequence[tuple[int, Window]], sequences: Sequence[np.ndarray], policy: Policy, batch: int
) -> Iterator[Batch]:
    """The given windows, each with the index of its sequence, in batches; the longest come first."""
    groups: dict[tuple[int, int], list[tuple[int, Window]]] = {}
    for index, window in windows:
        length = min(-(-(window.stop - window.start) // _BUCKET) * _BUCKET, policy.length)
        groups.setdefault((length, window.first - window.start), []).append((index, window))
    for (_, first), rows in sorted(groups.items(), reverse=True):
        for begin in range(0, len(rows), batch):
            part = tuple(rows[begin : begin + batch])
            longest = max(window.stop - window.start for _, window in part)
            inputs = np.zeros((len(part), longest), np.int64)
            for row, (index, window) in enumerate(part):
                inputs[row, : window.stop - window.start] = sequences[index][window.start : window.stop]
            yield Batch(torch.from_numpy(inputs), first, part)
