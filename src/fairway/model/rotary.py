"""Rotation of queries and keys by their positions, for any set of frequencies.

Pair i of a head is turned by `m theta_i` at position m, so a score depends on the distance of query and key alone:
`(R_m q).(R_n k) = sum_i (q1 k1 + q2 k2) cos phi_i + (q2 k1 - q1 k2) sin phi_i`, `phi_i = (n - m) theta_i`.
Frequencies are computed in float64 when the part is built, angles in float32 at least. Su et al. 2021
(arXiv:2104.09864). Shape key: B batch, H heads, T time, K head width, R rotated pairs.
"""

import math
from functools import lru_cache

import torch
from pydantic import Field
from torch import Tensor

from fairway.model.parts import Angles, Position, PositionConfig
from fairway.ops.rotate.native import rotate

Frequencies = tuple[float, ...]


class RotaryConfig(PositionConfig):
    """Settings that every rotary technique shares."""

    base: float = Field(default=10_000.0, gt=1)
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of each head that is turned, from the first features on; the rest carries no position."""
    interleaved: bool = False
    """Pair feature 2i with 2i + 1; otherwise i with i + half."""
    offset: int = Field(default=0, ge=0)
    """Position of the first token."""

    def rotated(self, head_width: int) -> int:
        """Features of a head that are turned; even."""
        if head_width < 2:
            raise ValueError(f"a head of width {head_width} has no pair to rotate; wider heads or `none` would work")
        return 2 * max(1, math.floor(self.fraction * head_width / 2 + 0.5))

    def plain_frequencies(self, head_width: int) -> Frequencies:
        """`theta_i = base^(-2i/d)`."""
        return frequencies(self.base, self.rotated(head_width))

    def trained_on(self, original: int | None, context: int) -> int:
        """Tokens the weights were trained at: `original`, or the model's context if that is not set."""
        return context if original is None else original


class ExtendedConfig(RotaryConfig):
    """Settings that every technique for longer contexts shares."""

    factor: float = Field(default=4.0, ge=1)
    """How many times longer a context is asked for than the weights were trained at."""
    original: int | None = Field(default=None, ge=2)
    """Tokens the weights were trained at; the model's context if not given."""


def frequencies(base: float, rotated: int) -> Frequencies:
    """`theta_i = base^(-2i/d)` for i in [0, d/2), d features rotated."""
    return tuple(base ** (-2 * pair / rotated) for pair in range(rotated // 2))


class Rotary(Position):
    """`rotate(x_BHTK, positions_BT, length) -> x_BHTK` with fixed frequencies."""

    def __init__(self, theta_R: Frequencies, config: RotaryConfig, magnitude: float = 1.0) -> None:
        super().__init__()
        self.theta_R = theta_R
        self.interleaved = config.interleaved
        self.offset = config.offset
        self.magnitude = magnitude

    def frequencies(self, length: int) -> Frequencies:  # noqa: ARG002
        """Radians a token for each pair, where `length` tokens are seen."""
        return self.theta_R

    def rotate(self, x_BHTK: Tensor, positions_BT: Tensor, length: int) -> Tensor:
        dtype = torch.float64 if x_BHTK.dtype == torch.float64 else torch.float32
        cos_BTR, sin_BTR = self._angles(positions_BT, length, dtype)
        return turned(x_BHTK, cos_BTR[:, None], sin_BTR[:, None], interleaved=self.interleaved)

    def angles(self, positions_BT: Tensor, dtype: torch.dtype) -> Angles | None:
        if self.interleaved or len(positions_BT) > 1 or not self.rotated_keys_stay_valid:
            return None
        cos_BTR, sin_BTR = self._angles(positions_BT, 0, dtype)
        return cos_BTR[0], sin_BTR[0]

    def _angles(self, positions_BT: Tensor, length: int, dtype: torch.dtype) -> Angles:
        """Cosines and sines, (B, T, R)."""
        theta_R = _table(self.frequencies(length), dtype, positions_BT.device)
        angle_BTR = (positions_BT + self.offset).to(dtype)[..., None] * theta_R
        cos, sin = angle_BTR.cos(), angle_BTR.sin()
        return (cos, sin) if self.magnitude == 1.0 else (cos * self.magnitude, sin * self.magnitude)


@lru_cache(maxsize=64)
def _table(frequencies: Frequencies, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept must serve training, too
        return torch.tensor(frequencies, dtype=dtype, device=device)


def turned(x_BHTK: Tensor, cos_B1TR: Tensor, sin_B1TR: Tensor, *, interleaved: bool) -> Tensor:
    """The first 2R features rotated pair by pair, the others as they are."""
    pairs = cos_B1TR.shape[-1]
    if not interleaved:
        angles = (part[0, 0] if len(part) == 1 else part[:, 0] for part in (cos_B1TR, sin_B1TR))
        return rotate(x_BHTK.transpose(1, 2), *angles).transpose(1, 2)
    cos_B1TR, sin_B1TR = cos_B1TR.to(x_BHTK.dtype), sin_B1TR.to(x_BHTK.dtype)
    first, second = x_BHTK[..., 0 : 2 * pairs : 2], x_BHTK[..., 1 : 2 * pairs : 2]
    turned_first = first * cos_B1TR - second * sin_B1TR
    turned_second = first * sin_B1TR + second * cos_B1TR
    y = torch.stack((turned_first, turned_second), dim=-1).flatten(-2)
    return y if 2 * pairs == x_BHTK.shape[-1] else torch.cat((y, x_BHTK[..., 2 * pairs :]), dim=-1)
