"""Recursive recomputation of a chain with few stored inputs, with the fewest evaluations possible.

With c stored inputs and no block evaluated more than r times beyond once, chains of up to C(c+r, c) blocks
can be reversed; the split into a part to run ahead and a part to come back to follows from `t(n, c) = min_k k
+ t(n - k, c - 1) + t(k, c)`. Griewank & Walther 2000.
"""

from pydantic import Field
from torch import nn

from fairway.core.config import Source
from fairway.train.numerics import RecomputeConfig
from fairway.train.recomputation import Revolve, install, layers_of
from fairway.train.segmentation import Costs, Prediction, revolve_slots, revolve_split

SOURCE = Source("Griewank & Walther", 2000, "doi:10.1145/347837.347846")


class Config(RecomputeConfig):
    """Settings of revolve."""

    slots: int | None = Field(default=None, ge=1)
    """Inputs of blocks stored at a time, the first among them; as few as `repeats` allows if not given."""
    repeats: int = Field(default=2, ge=1)
    """Most evaluations of any block beyond the last, where `slots` is not given."""

    def apply(self, model: nn.Module) -> None:
        install(model, Revolve(self.slots_for, layers_of(model)))

    def slots_for(self, count: int) -> int:
        """Stored inputs for a chain of `count` blocks."""
        return self.slots or revolve_slots(count, self.repeats)

    def predict(self, costs: Costs) -> Prediction:
        count = len(costs.kept)
        slots = min(self.slots_for(count), count)
        evaluations = revolve_split(count, slots)[0]
        extra = evaluations - (count - 1)
        stored = sum(sorted(costs.inputs, reverse=True)[:slots])
        return Prediction(stored + max(costs.kept), extra * sum(costs.work) / count)
