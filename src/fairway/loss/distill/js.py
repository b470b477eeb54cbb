"""Generalised Jensen-Shannon divergence between teacher and student at every token.

`b KL(t || m) + (1-b) KL(s || m)`, `m = b t + (1-b) s`, times T^2 at temperature T; bounded, and symmetric at b = 1/2.
At b = 0 and b = 1 it is the plain forward and reverse KL, as in the source's own code.
"""

from pydantic import Field

from fairway.core.config import Source
from fairway.loss.targets import TokenTerm
from fairway.loss.transfer import Distiller, TokenDistiller, TokenLossConfig
from fairway.model.lm import LanguageModel
from fairway.ops.divergence.naive import jensen_shannon

SOURCE = Source("Agarwal et al.", 2023, "arXiv:2306.13649")


class Config(TokenLossConfig):
    """Settings of a Jensen-Shannon divergence."""

    beta: float = Field(default=0.5, ge=0, le=1)
    """The teacher's share of the mixture: near 0 like forward KL, near 1 like reverse KL."""

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> Distiller:  # noqa: ARG002
        return TokenDistiller(self.alpha, TokenTerm(jensen_shannon(self.beta), self.temperature, self.alpha))
