"""From the last hidden vector to logits: tied to the embedding or with its own table, scaled, softly capped.

`logits = cap(scale * h W^T)`, `cap(z) = c tanh(z / c)`, in float32 at least. Tying: Press & Wolf 2017
(arXiv:1608.05859). A head that unties during training follows the embedding's table until then and goes its own way
from there. Shape key: B batch, T time, D width, V vocabulary.
"""

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fairway.core.config import Config
from fairway.model.linear import Linear
from fairway.model.parts import Embedding, Part, Role, widened
from fairway.ops.cross_entropy.table import Table
from fairway.ops.log_softmax.native import log_softmax_


class HeadConfig(Config):
    """Settings of the head."""

    tied: bool = True
    """Use the embedding's table."""
    untie_at: float | None = Field(default=None, gt=0, lt=1)
    """Share of training after which a tied head gets a table of its own, beginning as a copy."""
    softcap: float | None = Field(default=30.0, gt=0)
    """Bounds logits smoothly."""
    scale: float = Field(default=1.0, gt=0)
    """Factor on the logits before the cap."""

    @model_validator(mode="after")
    def _only_what_is_tied_unties(self) -> "HeadConfig":
        if self.untie_at is not None and not self.tied:
            raise ValueError("untie_at is set, but tied is false; leave one of them out")
        return self

    def build(self, vocabulary: int, width: int) -> "Head":
        """A head for a vocabulary."""
        return Head(vocabulary, width, self)


class Head(Part):
    """`forward(x_BTD, embedding, progress) -> logits_BTV`."""

    def __init__(self, vocabulary: int, width: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.width = width
        owns = not config.tied or config.untie_at is not None
        self.own = Linear(width, vocabulary, role=Role.HEAD, gain=0.0) if owns else None

    def flops(self, context: int) -> float:  # noqa: ARG002
        return 2.0 * self.vocabulary * self.width

    def forward(self, x_BTD: Tensor, embedding: Embedding, progress: float = 1.0) -> Tensor:
        logits_BTV = widened(self.uncapped(x_BTD, embedding, progress))
        cap = self.config.softcap
        return logits_BTV if cap is None else cap * torch.tanh(logits_BTV / cap)

    def uncapped(self, x_BTD: Tensor, embedding: Embedding, progress: float = 1.0) -> Tensor:
        """Logits before the soft cap, in the dtype of the product."""
        own = self._own(progress)
        logits_BTV = embedding.unembed(x_BTD) if own is None else own(x_BTD)
        return logits_BTV if self.config.scale == 1.0 else logits_BTV * self.config.scale

    def log_probabilities(self, x_BTD: Tensor, embedding: Embedding, progress: float = 1.0) -> Tensor:
        """`log softmax` of the logits; not differentiable."""
        return log_softmax_(self.uncapped(x_BTD, embedding, progress), self.config.softcap)

    def table(self, embedding: Embedding, progress: float = 1.0) -> Table | None:
        """The parameter that gives the logits before the soft cap; None where they come of more than one."""
        own = self._own(progress)
        weight_VD = embedding.output_table() if own is None else own.weight
        return Table(weight_VD, self.config.scale) if type(weight_VD) is nn.Parameter else None

    def _own(self, progress: float) -> Linear | None:
        """The table of its own that is in use; None while the embedding's is."""
        follows = self.config.untie_at is not None and progress < self.config.untie_at
        return None if follows else self.own

    def follow(self, embedding: Embedding, progress: float) -> None:
        """Before the head unties, makes its own table equal the embedding's; does nothing afterwards."""
        if self.own is None or self.config.untie_at is None or progress >= self.config.untie_at:
            return
        table_VD = embedding.output_table()
        assert table_VD is not None
        with torch.no_grad():
            self.own.weight.copy_(table_VD)
