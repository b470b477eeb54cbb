"""Which vectors of integers share a frequency table, and so a coded stream.

Vectors that look alike are cheaper together, because a table and a coder's state are paid once; those that
differ are cheaper apart. Vectors are put in the order of their entropy and neighbours are joined as long as
the estimated total falls.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from fairway.artifact.table import Histogram

_BITS_OF_A_SYMBOL_IN_A_TABLE = 4.0
_BITS_OF_A_STREAM = 100.0


@dataclass(frozen=True)
class _Group:
    members: tuple[int, ...]
    histogram: Histogram
    bits: float


def grouped(histograms: Sequence[Histogram]) -> list[tuple[int, ...]]:
    """Indices of the vectors of each stream, in rising order; every vector in exactly one stream."""
    groups = [_Group((index,), histogram, estimated_bits(histogram)) for index, histogram in enumerate(histograms)]
    groups.sort(key=lambda group: group.bits / max(1, int(group.histogram.counts.sum())))
    joins = [_join(left, right) for left, right in itertools.pairwise(groups)]
    while joins:
        gains = [groups[at].bits + groups[at + 1].bits - join.bits for at, join in enumerate(joins)]
        at = max(range(len(gains)), key=gains.__getitem__)
        if gains[at] <= 0:
            break
        groups[at : at + 2] = [joins[at]]
        del joins[at]
        for near in (at - 1, at):
            if 0 <= near < len(joins):
                joins[near] = _join(groups[near], groups[near + 1])
    return sorted(tuple(sorted(group.members)) for group in groups)


def estimated_bits(histogram: Histogram) -> float:
    """Bits of a stream of its own: entropy, table and framing; not exact, only good for comparing."""
    return histogram.entropy() + _BITS_OF_A_SYMBOL_IN_A_TABLE * min(len(histogram.values), 512) + _BITS_OF_A_STREAM


def _join(left: _Group, right: _Group) -> _Group:
    histogram = left.histogram + right.histogram
    return _Group(left.members + right.members, histogram, estimated_bits(histogram))
