"""No pruning: every weight is kept."""

from collections.abc import Sequence

from torch import Tensor

from fairway.compress.parts import Pruner, PrunerConfig
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

    def prune(
        self,
        model: LanguageModel,  # noqa: ARG002
        calibration: Sequence[Tensor],  # noqa: ARG002
        listener: Listener = silent,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        return {}
