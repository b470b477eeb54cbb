"""Stretches of blocks are computed again, each from its input.

`every` cuts after every `size` blocks; `sqrt` picks the size near sqrt(n), where inputs and activations of
one stretch together are smallest: `K + n/K` for K stretches of n equal blocks. The last stretch, whose
gradients come first, need not be computed again, so the extra work is `n - n/K` evaluations of a block. Chen
et al. 2016.
"""

from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from fairway.core.config import Source
from fairway.train.numerics import RecomputeConfig
from fairway.train.recomputation import Segmented, install, layers_of
from fairway.train.segmentation import Costs, Prediction, Segment, equal_segments, predict, square_root_size

Kind = Literal["every", "sqrt"]
KINDS: tuple[Kind, ...] = ("every", "sqrt")
SUMMARIES = {
    "every": "Blocks are computed again in stretches of a fixed number",
    "sqrt": "Blocks are computed again in stretches of about sqrt(n)",
}
SOURCE = Source("Chen et al.", 2016, "arXiv:1604.06174")


class Config(RecomputeConfig):
    """Settings of recomputation in equal stretches."""

    size: int | None = Field(default=None, ge=1)
    """Blocks per stretch, for `every`; 1 if not given."""
    keep_last: bool = True
    """Keep the activations of the last stretch, where the depth runs all blocks in one go."""

    @model_validator(mode="after")
    def _sqrt_finds_its_size(self) -> "Config":
        if self.kind == "sqrt" and self.size is not None:
            raise ValueError("sqrt finds the size itself; every takes a size")
        return self

    def apply(self, model: nn.Module) -> None:
        layers = layers_of(model)
        install(model, Segmented(model, lambda count, costs: self.segments(count, layers)))  # noqa: ARG005

    def segments(self, count: int, layers: int) -> list[Segment]:
        """The stretches of `count` blocks that run in one go, of `layers` in all."""
        size = square_root_size(count) if self.kind == "sqrt" else self.size or 1
        return equal_segments(count, size, self.keep_last and count == layers)

    def predict(self, costs: Costs) -> Prediction:
        return predict(self.segments(len(costs.kept), len(costs.kept)), costs)
