"""Removes weights column by column and lets the later inputs of each layer make up for them.

The loop of `compress/solve.py`: in every block of columns the least `w^2 / U_ii^2` go, all rows compared
together (or all but n of every m inputs, chosen on weights updated so far), and each removal is passed on
to the right by the inverse Hessian. Layer after layer, each behind the pruned ones before it. Frantar &
Alistarh 2023. Shape key: R rows (outputs), C columns (inputs).
"""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from fairway.compress.calibrate import sequentially
from fairway.compress.masks import SparsityConfig, apply, pattern_of, prunable
from fairway.compress.parts import Pruned, Pruner, Statistics
from fairway.compress.solve import Solution, n_of_m, reconstruct, unstructured
from fairway.core.config import Source
from fairway.core.log import Listener, silent
from fairway.model.lm import LanguageModel

SOURCE = Source("Frantar & Alistarh", 2023, "arXiv:2301.00774")


class Config(SparsityConfig):
    """Settings of SparseGPT."""

    block: int = Field(default=128, ge=16, multiple_of=16)
    """Columns whose weights are compared, and whose errors are passed on, together."""
    damping: float = Field(default=0.01, gt=0)
    """Share of the Hessian's mean diagonal that is added to it."""

    def build(self) -> Pruner:
        return SparseGpt(self)


class SparseGpt(Pruner):
    """Prunes and adjusts the linear maps that the calibration text reaches."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:
        weights = prunable(model)
        masks: dict[str, Tensor] = {}

        def treat(name: str, statistics: Statistics) -> Tensor | None:
            if name not in weights:
                return None
            solution = self.solve(weights[name], statistics.hessian_CC)
            masks[name] = solution.kept_RC
            return solution.weight_RC

        sequentially(model, calibration, treat, listener)
        return Pruned(model, apply(model, masks))

    def solve(self, weight_RC: Tensor, hessian_CC: Tensor) -> Solution:
        """One layer."""
        config = self.config
        if config.pattern is not None:
            kept, group = pattern_of(config.pattern)
            selection = n_of_m(group - kept, group)
        else:
            selection = unstructured(config.sparsity)
        block = config.block - config.block % (1 if selection.pattern is None else selection.pattern[1])
        return reconstruct(weight_RC, hessian_CC, selection=selection, block=block, damping=config.damping)
