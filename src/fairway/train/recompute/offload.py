"""Activations wait in the host's memory for their backward pass.

Nothing is computed twice; each saved activation travels to the host and back, weights stay. Useful on a GPU
whose memory, not whose bus, is short; on a CPU it only copies. Rajbhandari et al. 2021 (ZeRO-Infinity).
"""

from torch import nn

from fairway.core.config import Source
from fairway.train.numerics import RecomputeConfig
from fairway.train.recomputation import Offload, install
from fairway.train.segmentation import Costs, Prediction

SOURCE = Source("Rajbhandari et al.", 2021, "arXiv:2104.07857")


class Config(RecomputeConfig):
    """Settings of offloading; there are none."""

    def apply(self, model: nn.Module) -> None:
        install(model, Offload(model))

    def predict(self, costs: Costs) -> Prediction:
        return Prediction(max(map(sum, zip(costs.inputs, costs.kept, strict=True))), 0.0)
