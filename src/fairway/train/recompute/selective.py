"""Only what is large to keep and cheap to compute is computed again: attention's scores and point functions.

The outputs of products with weights are kept where a gradient needs them, and those of scans and of fused attention,
which holds no scores, with its queries and keys; scores and probabilities of attention by plain products, norms, gates
and activations are not. Korthikanti et al. 2022.
"""

from torch import nn

from fairway.core.config import Source
from fairway.train.numerics import RecomputeConfig
from fairway.train.recomputation import Selective, install
from fairway.train.segmentation import Costs, Prediction

SOURCE = Source("Korthikanti et al.", 2022, "arXiv:2205.05198")


class Config(RecomputeConfig):
    """Settings of selective recomputation; there are none."""

    def apply(self, model: nn.Module) -> None:
        install(model, Selective())

    def predict(self, costs: Costs) -> Prediction:
        again = max(kept - dear for kept, dear in zip(costs.kept, costs.dear, strict=True))
        return Prediction(sum(costs.inputs) + sum(costs.dear) + max(0, again), 0.0)
