"""Rounding to the nearest multiple of a step for each row.

`q = round(w / step_r)`, `step_r = 2^strength dev_r^power dev^(1 - power)`, with dev_r the root mean square
of row r and dev that of the whole weight. With power 1 the step is k sigma of its row over the number of
levels; after entropy coding only that ratio counts: about `2.047 - strength` bits a weight.
Shape key: R rows, C columns.
"""

from pydantic import Field

from fairway.compress.parts import Quantizer, QuantizerConfig
from fairway.compress.steps import RowRounding
from fairway.core.config import Source

SOURCE = Source("Parameter Golf contributors", 2026, "https://github.com/openai/parameter-golf")


class Config(QuantizerConfig):
    """Settings of rounding to nearest."""

    row_power: float = Field(default=1.0, ge=0, le=1)
    """1: each row's step follows its own deviation; 0: one step for the whole weight."""

    def build(self) -> Quantizer:
        return RowRounding(self.row_power)
