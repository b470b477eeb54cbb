"""Bit strings: fixed-width fields, Elias gamma and Rice codes, most significant bit first.

Rice code of n with parameter k: n >> k in unary, then the k low bits (Rice & Plaunt 1971). Elias gamma of n
>= 1: as many zeros as n has bits after its first, then n (Elias 1975).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from fairway.core.errors import ArtifactError

_LONGEST_UNARY = 1 << 16


class BitWriter:
    """Collects fields and gives bytes, the last one padded with zeros."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def fixed(self, value: int, width: int) -> None:
        """`value` in exactly `width` bits."""
        assert 0 <= value < 1 << width, (value, width)
        if width:
            self._pieces.append(f"{value:0{width}b}")

    def gamma(self, value: int) -> None:
        """A number of at least 1 in Elias gamma."""
        assert value >= 1
        self._pieces.append("0" * (value.bit_length() - 1) + f"{value:b}")

    def rice(self, values: Iterable[int], parameter: int) -> None:
        """Numbers of at least 0 in Rice code."""
        for value in values:
            self._pieces.append("1" * (value >> parameter) + "0")
            self.fixed(value & ((1 << parameter) - 1), parameter)

    def data(self) -> bytes:
        """Everything written so far."""
        text = "".join(self._pieces)
        return int(text.ljust(-(-len(text) // 8) * 8, "0") or "0", 2).to_bytes(-(-len(text) // 8), "big")


class BitReader:
    """Reads fields back; raises `ArtifactError` where the bytes end too early."""

    def __init__(self, data: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8)).tobytes()
        self.position = 0

    def fixed(self, width: int) -> int:
        """A number of `width` bits."""
        field = self._bits[self.position : self.position + width]
        if len(field) < width:
            raise ArtifactError("A table ends in the middle of a number.")
        self.position += width
        return int(field.translate(_DIGITS), 2) if width else 0

    def gamma(self) -> int:
        """A number in Elias gamma, below 2^40."""
        zeros = self._run(1, 39)
        return self.fixed(zeros + 1)

    def rice(self, count: int, parameter: int) -> list[int]:
        """`count` numbers in Rice code."""
        values = []
        for _ in range(count):
            high = self._run(0, _LONGEST_UNARY)
            self.position += 1
            values.append(high << parameter | self.fixed(parameter))
        return values

    def align(self) -> int:
        """Skips padding, which must be zero; returns the number of bytes read."""
        size = -(-self.position // 8)
        if any(self._bits[self.position : size * 8]):
            raise ArtifactError("There are stray bits behind a table.")
        self.position = size * 8
        return size

    def _run(self, until: int, limit: int) -> int:
        end = self._bits.find(until, self.position, self.position + limit + 1)
        if end < 0:
            raise ArtifactError("A table ends in the middle of a number.")
        length = end - self.position
        self.position = end
        return length


def zigzag(values: Sequence[int]) -> list[int]:
    """Signed numbers as unsigned: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return [2 * value if value >= 0 else -2 * value - 1 for value in values]


def unzigzag(values: Iterable[int]) -> list[int]:
    """The inverse of `zigzag`."""
    return [value >> 1 if value % 2 == 0 else -(value >> 1) - 1 for value in values]


def best_rice(values: Sequence[int]) -> tuple[int, int]:
    """The parameter in 0..15 with the shortest Rice code, and its length in bits."""
    array = np.asarray(values, np.int64)
    lengths = (array >> _PARAMETERS).sum(axis=1) + len(array) * (_PARAMETERS[:, 0] + 1)
    best = int(np.argmin(lengths))
    return best, int(lengths[best])


_PARAMETERS = np.arange(16, dtype=np.int64)[:, None]
_DIGITS = bytes([ord("0"), ord("1"), *range(2, 256)])
