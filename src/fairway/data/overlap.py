"""How much of the validation text also stands in the training text, measured by runs of 50 bytes.

Whole documents never overlap, since the split is by their content; quoted and copied passages can. Every run
of 50 bytes is hashed by a polynomial modulo 2^64, those whose mixed hash falls in one of `_SAMPLING` classes
are kept (so the choice depends on the run's content alone), and the share of validation runs found in
training is reported. Source: Broder 1997, "On the resemblance and containment of documents".
"""

from collections.abc import Iterable

import numpy as np

SHINGLE_BYTES = 50
_SAMPLING = 64
_BASE = 0x9E3779B97F4A7C15
_BLOCK = 1 << 18


def shared_runs(train: Iterable[bytes], validation: Iterable[bytes]) -> float:
    """Share of the sampled 50-byte runs of the validation documents that occur in a training document too."""
    runs = np.concatenate([np.zeros(0, np.uint64), *(sampled_runs(text) for text in validation)])
    if not len(runs):
        return 0.0
    distinct, counts = np.unique(runs, return_counts=True)
    found = np.zeros(len(distinct), bool)
    for text in train:
        theirs = sampled_runs(text)
        place = np.minimum(np.searchsorted(distinct, theirs), len(distinct) - 1)
        found[place[distinct[place] == theirs]] = True
    return float(counts[found].sum() / counts.sum())


def sampled_runs(text: bytes) -> np.ndarray:
    """Mixed hashes (uint64) of the sampled runs of one document, in order."""
    data = np.frombuffer(text, np.uint8)
    step = _BLOCK - SHINGLE_BYTES + 1
    parts = [_block_runs(data[start : start + _BLOCK]) for start in range(0, len(data) - SHINGLE_BYTES + 1, step)]
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def _block_runs(data: np.ndarray) -> np.ndarray:
    # The sum of byte_j * base^j over a window is a difference of prefix sums; times base^-start it does not
    # depend on where the window lies. All of it wraps modulo 2^64, where the odd base has an inverse.
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((data.astype(np.uint64) + 1) * _POWERS[: len(data)])])
    starts = len(data) - SHINGLE_BYTES + 1
    value = (sums[SHINGLE_BYTES:] - sums[:starts]) * _INVERSES[:starts]
    value = (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(32)
    return value[value % np.uint64(_SAMPLING) == 0]


def _powers(base: int) -> np.ndarray:
    factors = np.full(_BLOCK, np.uint64(base))
    factors[0] = 1
    return np.cumprod(factors)


_POWERS = _powers(_BASE)
_INVERSES = _powers(pow(_BASE, -1, 1 << 64))
