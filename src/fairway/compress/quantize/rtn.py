"""Rounding to the nearest multiple of a step for each row.

`q = round(w / step_r)`, `step_r = 2^strength dev_r^power dev^(1 - power)`, with dev_r the root mean square
of row r and dev that of the whole weight. With power 1 the step is k sigma of its row over the number of
levels; after entropy coding only that ratio counts: about `2.047 - strength` bits a weight.
Shape key: R rows, C columns.
"""

import torch
from pydantic import Field

from fairway.artifact.packing.rows import pack, steps_of
from fairway.artifact.parts import Packed
from fairway.compress.parts import Piece, Quantizer, QuantizerConfig, removed
from fairway.compress.steps import row_exponents
from fairway.core.config import Source

SOURCE = Source("Parameter Golf contributors", 2026, "https://github.com/openai/parameter-golf")


class Config(QuantizerConfig):
    """Settings of rounding to nearest."""

    row_power: float = Field(default=1.0, ge=0, le=1)
    """1: each row's step follows its own deviation; 0: one step for the whole weight."""

    def build(self) -> Quantizer:
        return RoundToNearest(self)


class RoundToNearest(Quantizer):
    """Packs as `rows`."""

    def __init__(self, config: Config) -> None:
        self.power = config.row_power

    def quantize(self, piece: Piece, strength: float) -> Packed:
        weight_RC = removed(piece.weight_RC, piece.kept_RC)
        exponents_R = row_exponents(weight_RC, strength, self.power)
        steps_R = torch.from_numpy(steps_of(exponents_R))
        codes_RC = torch.round(weight_RC / steps_R[:, None]).to(torch.int32).numpy()
        return pack(codes_RC, exponents_R, piece.shape)
