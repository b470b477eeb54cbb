"""The exact best stretches of unequal blocks, for a memory budget or for least memory.

Each block's input and activations are measured on the first batch. Over all ways to cut the blocks into
stretches that are kept or computed again, takes the least extra work whose peak fits `memory`, or the
smallest peak: sum of stored inputs + kept stretches + the largest stretch computed again, by dynamic
programming over Pareto fronts. Chen et al. 2016, Beaumont et al. 2019 (arXiv:1911.13214) for chains of
unequal stages.
"""

from torch import nn

from fairway.core.budget import Bytes
from fairway.core.config import Source
from fairway.train.numerics import RecomputeConfig
from fairway.train.recomputation import Segmented, install, layers_of
from fairway.train.segmentation import (
    Costs,
    Prediction,
    Segment,
    cheapest_segments,
    equal_segments,
    predict,
    square_root_size,
)

SOURCE = Source("Beaumont et al.", 2019, "arXiv:1911.13214")


class Config(RecomputeConfig):
    """Settings of optimal recomputation."""

    memory: Bytes | None = None
    """Bytes that the blocks' activations may take at the peak; the smallest possible peak if not given."""

    def apply(self, model: nn.Module) -> None:
        layers = layers_of(model)
        install(model, Segmented(model, lambda count, costs: self.segments(count, layers, costs())))

    def segments(self, count: int, layers: int, costs: Costs) -> list[Segment]:
        """The stretches of `count` blocks that run in one go, of `layers` in all.

        Where those are not all blocks, the others count as their like: either everything fits and is kept, or each
        stretch is computed again.
        """
        if count == layers:
            return cheapest_segments(costs, self.memory)
        everything = (sum(costs.inputs) + sum(costs.kept)) * layers / count
        if self.memory is not None and everything <= self.memory:
            return [Segment(0, count, recompute=False)]
        return equal_segments(count, square_root_size(count), keep_last=False)

    def predict(self, costs: Costs) -> Prediction:
        return predict(cheapest_segments(costs, self.memory), costs)
