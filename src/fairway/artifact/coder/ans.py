"""Asymmetric numeral systems: last in, first out, within bytes of the entropy.

Encoding symbol s with frequency f_s of total M maps the state x to `M floor(x / f_s) + c_s + x mod f_s`;
decoding inverts it. The frequencies come from a short table in front. Duda 2009 (arXiv:0902.0271); the
state machine is that of the `constriction` library.
"""

import numpy as np
from constriction import stream  # pyrefly: ignore[missing-module-attribute]

from fairway.artifact.parts import Coder, CoderConfig, Integers, refuse_unless
from fairway.artifact.table import Histogram, fit_table, joined, low_bytes, read_table, split
from fairway.core.config import Source
from fairway.core.errors import ArtifactError

SOURCE = Source("Duda", 2009, "arXiv:0902.0271")

_END = np.array([0xA5, 0xA5], np.int32)
_BITS_OF_A_STATE = 40
_OCTET = stream.model.Uniform(256)


class Config(CoderConfig):
    """Asymmetric numeral systems; takes no settings."""

    def build(self) -> "Ans":
        return Ans()


class Ans(Coder):
    """Table, state words without their trailing zeros, low bits. An end mark betrays a wrong count."""

    def estimate(self, values: np.ndarray, counts: np.ndarray) -> float:
        return fit_table(Histogram(values, counts))[1] + _BITS_OF_A_STATE

    def encode(self, symbols: Integers) -> bytes:
        table, _ = fit_table(Histogram.of(symbols))
        places, low = split(symbols, table)
        words = b""
        if len(table.symbols) > 1:
            stack = stream.stack.AnsCoder()
            stack.encode_reverse(_END, _OCTET)
            stack.encode_reverse(places, _model(table.probabilities()))
            words = stack.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
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
    refuse_unless(not words.endswith(b"\0"), "A coded stream ends in an empty byte.")
    padded = np.frombuffer(words + bytes(-len(words) % 4), "<u4").astype(np.uint32)
    try:
        stack = stream.stack.AnsCoder(padded)
        places = stack.decode(_model(probabilities), count)
        whole = np.array_equal(stack.decode(_OCTET, 2), _END) and stack.is_empty()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise ArtifactError(f"A coded stream cannot be decoded: {error}") from None
    refuse_unless(whole, "A coded stream is longer or shorter than the symbols it should hold.")
    return places


def _model(probabilities: np.ndarray) -> stream.model.Categorical:
    return stream.model.Categorical(probabilities.astype(np.float32), perfect=False, lazy=False)
