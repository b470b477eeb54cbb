"""Every activation is kept; nothing is computed twice.

Memory grows linearly with depth; time is one forward and one backward pass.
"""

from torch import nn

from fairway.core.config import Source
from fairway.train.numerics import RecomputeConfig
from fairway.train.segmentation import Costs, Prediction, Segment, predict

SOURCE = Source("Rumelhart et al.", 1986, "doi:10.1038/323533a0")


class Config(RecomputeConfig):
    """Settings of plain backpropagation; there are none."""

    def apply(self, model: nn.Module) -> None:
        """Leaves the model as it is."""

    def predict(self, costs: Costs) -> Prediction:
        return predict([Segment(0, len(costs.kept), recompute=False)], costs)
