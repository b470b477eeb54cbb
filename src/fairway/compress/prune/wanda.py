"""Removes, for every output, the weights of least magnitude times input norm.

`score_ij = |W_ij| ||X_j||_2`, compared inside each output row, layer after layer so that each sees the
pruned ones before it; the weights that stay are not changed. Within a row its order is that of diagonal
OBD, `1/2 H_jj w^2` with `H = 2 X X^T / n`. Sun et al. 2023. Shape key: R rows (outputs), C columns
(inputs).
"""

from collections.abc import Sequence

from torch import Tensor

from fairway.compress.calibrate import sequentially
from fairway.compress.masks import SparsityConfig, apply, keep_in_rows, keep_pattern, prunable
from fairway.compress.parts import Pruned, Pruner, Statistics
from fairway.core.config import Source
from fairway.core.log import Listener, silent
from fairway.model.lm import LanguageModel

SOURCE = Source("Sun et al.", 2023, "arXiv:2306.11695")


class Config(SparsityConfig):
    """Settings of Wanda."""

    def build(self) -> Pruner:
        return Wanda(self)


class Wanda(Pruner):
    """Prunes the linear maps that the calibration text reaches."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:
        weights = prunable(model)
        masks: dict[str, Tensor] = {}

        def treat(name: str, statistics: Statistics) -> Tensor | None:
            if name not in weights:
                return None
            masks[name] = self.keep(weights[name], statistics.squares_C)
            return weights[name] * masks[name]

        sequentially(model, calibration, treat, listener)
        return Pruned(model, apply(model, masks))

    def keep(self, weight_RC: Tensor, squares_C: Tensor) -> Tensor:
        """The mask of one layer, from its weight and each input's sum of squares."""
        score_RC = weight_RC.abs() * squares_C.sqrt().to(weight_RC.dtype)
        if self.config.pattern is not None:
            return keep_pattern(score_RC, self.config.pattern)
        return keep_in_rows(score_RC, self.config.sparsity)
