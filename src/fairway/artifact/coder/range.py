"""Range coding: first in, first out, within bytes of the entropy.

The interval [low, low + range) is narrowed to the part `c_s / M .. (c_s + f_s) / M` of symbol s, and digits
that no longer change are written out. The frequencies come from a short table in front. Martin 1979; by the
`constriction` library.
"""

import numpy as np
from constriction import stream  # pyrefly: ignore[missing-module-attribute]

from fairway.artifact.parts import Coder, CoderConfig, Integers, refuse_unless
from fairway.artifact.table import Histogram, fit_table, joined, low_bytes, read_table, split
from fairway.core.config import Source
from fairway.core.errors import ArtifactError

SOURCE = Source("Martin", 1979, "Video & Data Recording Conference, Southampton")

_END = np.array([0xA5, 0xA5], np.int32)
_BITS_OF_A_STATE = 40
_OCTET = stream.model.Uniform(256)


class Config(CoderConfig):
    """Range coding; takes no settings."""

    def build(self) -> "Range":
        return Range()


class Range(Coder):
    """Table, words of the range coder, low bits. An end mark betrays a wrong count."""

    def estimate(self, values: np.ndarray, counts: np.ndarray) -> float:
        return fit_table(Histogram(values, counts))[1] + _BITS_OF_A_STATE

    def encode(self, symbols: Integers) -> bytes:
        table, _ = fit_table(Histogram.of(symbols))
        places, low = split(symbols, table)
        words = b""
        if len(table.symbols) > 1:
            queue = stream.queue.RangeEncoder()
            queue.encode(places, _model(table.probabilities()))
            queue.encode(_END, _OCTET)
            words = queue.get_compressed().astype("<u4").tobytes()
        return table.serialise() + words + low

    def decode(self, data: bytes, count: int) -> Integers:
        table, start = read_table(data)
        stop = len(data) - low_bytes(table, count)
        refuse_unless(start <= stop, "A coded stream is shorter than its table says.")
        words = data[start:stop]
        if len(table.symbols) > 1:
            places = _decoded(words, table.probabilities(), count)
        else:
            refuse_unless(not words, "A stream of one symbol holds coded words.")
            refuse_unless(bool(table.symbols) or not count, "A stream has no symbols in its table.")
            places = np.zeros(count, np.int32)
        return joined(places, data[stop:], table) if count else places


def _decoded(words: bytes, probabilities: np.ndarray, count: int) -> Integers:
    refuse_unless(len(words) % 4 == 0, "A coded stream is not made of whole words.")
    try:
        queue = stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
        places = queue.decode(_model(probabilities), count)
        whole = np.array_equal(queue.decode(_OCTET, 2), _END) and queue.maybe_exhausted()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise ArtifactError(f"A coded stream cannot be decoded: {error}") from None
    refuse_unless(whole, "A coded stream is longer or shorter than the symbols it should hold.")
    return places


def _model(probabilities: np.ndarray) -> stream.model.Categorical:
    return stream.model.Categorical(probabilities.astype(np.float32), perfect=False, lazy=False)
