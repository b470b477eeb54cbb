"""Bits per byte by position in the window: how well a model predicts with little context, with much, and with more than
it was trained on.

Text is cut into whole windows as one stream, and the nats of each target go to the bin of its place in its window.
`bits_per_byte = nats / (ln 2 * targets * mean bytes of a target)`, so the mean of a curve over its targets is the bits
per byte of the whole text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairway.core.errors import EvaluationError
from fairway.core.log import Event, Listener, silent
from fairway.serve.extend import at_context
from fairway.serve.model import Model
from fairway.serve.scoring import NetworkPredictor, score_sequences, sequences_of
from fairway.serve.window import Policy

EXTENSIONS = ("none", "position_interpolation", "ntk", "dynamic_ntk", "yarn")
"""Ways to go on beyond the trained context; `none` leaves the rotations as they were trained."""


@dataclass(frozen=True)
class PositionCurve:
    """Bits per byte of the targets in each bin of positions."""

    name: str
    position: tuple[float, ...]
    """Tokens of context that the targets of a bin have, on average."""
    bits_per_byte: tuple[float, ...]
    targets: tuple[int, ...]

    def mean(self, first: float = 0.0, stop: float = math.inf) -> float:
        """Bits per byte of the targets whose bins lie in [first, stop); NaN where there are none."""
        inside = [first <= position < stop for position in self.position]
        weight = sum(count for count, kept in zip(self.targets, inside, strict=True) if kept)
        bits = zip(self.bits_per_byte, self.targets, inside, strict=True)
        return math.fsum(value * count for value, count, kept in bits if kept) / weight if weight else math.nan


def by_position(
    model: Model, documents: Sequence[bytes], length: int, bins: int = 32, name: str = "model"
) -> PositionCurve:
    """The curve of a model over windows of `length` tokens, in at most `bins` bins of equal width.

    Raises `EvaluationError` where the text does not fill one window.
    """
    tokens = model.tokenizer.encode_all(list(documents))
    sequences = sequences_of(tokens, model.tokenizer.boundary, "concatenated")
    targets = sum(len(sequence) - 1 for sequence in sequences)
    if targets < length:
        raise EvaluationError(f"The text has {targets:,} tokens; at least one window of {length:,} is needed.")
    tally = score_sequences(NetworkPredictor(model.network, steps=model.steps), sequences, Policy(length, length))
    nats = tally.nats[0]
    place = np.arange(len(nats)) % length
    edges = np.unique(np.linspace(0, length, bins + 1).round().astype(np.int64))
    bin_of = np.searchsorted(edges, place, side="right") - 1
    count = np.bincount(bin_of, minlength=len(edges) - 1)
    sums = np.bincount(bin_of, nats, len(edges) - 1)
    places = np.bincount(bin_of, place + 1.0, len(edges) - 1)
    bytes_of_a_target = sum(map(len, documents)) / targets
    return PositionCurve(
        name,
        tuple((places / count).tolist()),
        tuple((sums / (math.log(2) * count * bytes_of_a_target)).tolist()),
        tuple(count.tolist()),
    )


def compare_extensions(
    model: Model,
    documents: Sequence[bytes],
    context: int,
    kinds: Sequence[str] = EXTENSIONS,
    *,
    bins: int = 32,
    listener: Listener = silent,
) -> list[PositionCurve]:
    """The curves of one model over windows of `context` tokens, its positions extended in each of the ways."""
    curves = []
    for done, kind in enumerate(kinds, 1):
        longer = at_context(model, context, "rope" if kind == "none" else kind)
        curves.append(by_position(longer, documents, context, bins, kind))
        listener(Event("extend", done / len(kinds), message=kind))
    return curves
