"""Logits of hidden vectors by one table, `z = scale * h W^T`.

Shape key: N tokens, D width, V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Table:
    """What a loss needs to know of a linear head in order to differentiate it by itself."""

    weight_VD: Tensor
    scale: float = 1.0

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """Logits before any soft cap, in the dtype of the product."""
        logits_NV = functional.linear(hidden_ND, self.weight_VD)
        return logits_NV if self.scale == 1.0 else logits_NV * self.scale
