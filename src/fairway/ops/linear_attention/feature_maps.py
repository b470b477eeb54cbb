"""Feature maps that turn keys and queries into non-negative features, so that their products can be weights.

Katharopoulos et al. 2020 (arXiv:2006.16236) use `elu(x) + 1`.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional

FeatureMap = Literal["elu_plus_one", "relu", "square", "identity"]

FEATURE_MAPS: dict[FeatureMap, Callable[[Tensor], Tensor]] = {
    "elu_plus_one": lambda x: functional.elu(x) + 1.0,
    "relu": functional.relu,
    "square": lambda x: x * x,
    "identity": lambda x: x,
}
