"""No pruning: every weight is kept."""

from collections.abc import Sequence

from torch import Tensor

from fairway.compress.parts import Pruned, Pruner, PrunerConfig
from fairway.core.config import Source
from fairway.core.log import Listener, silent
from fairway.model.lm import LanguageModel

SOURCE = Source("Fairway", 2026, "the baseline of the slot")


class Config(PrunerConfig):
    """No pruning; takes no settings."""

    def build(self) -> Pruner:
        return Nothing()


class Nothing(Pruner):
    """Leaves the model as it is."""

    def prune(self, model: LanguageModel, calibration: Sequence[Tensor], listener: Listener = silent) -> Pruned:  # noqa: ARG002
        return Pruned(model)
