"""Skewed KL divergence: the reference is mixed with a little of the other side, so that it never vanishes.

Forward: `KL(t || k t + (1-k) s)`; backward: `KL(s || k s + (1-k) t)`; times T^2 at temperature T. Bounded by `-log k`,
and smoother than the plain KL where student and teacher lie far apart.
"""

from typing import Literal

from pydantic import Field

from fairway.core.config import Source
from fairway.loss.targets import TokenTerm
from fairway.loss.transfer import Distiller, TokenDistiller, TokenLossConfig
from fairway.model.lm import LanguageModel
from fairway.ops.divergence.naive import skew_kl

SOURCE = Source("Ko et al.", 2024, "arXiv:2402.03898")


class Config(TokenLossConfig):
    """Settings of a skewed KL divergence."""

    skew: float = Field(default=0.1, ge=0, lt=1)
    """Share of the first distribution in the mixture; 0 is the plain KL."""
    direction: Literal["forward", "backward"] = "forward"
    """`forward` begins from the teacher, `backward` from the student."""

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> Distiller:  # noqa: ARG002
        divergence = skew_kl(self.skew, backward=self.direction == "backward")
        return TokenDistiller(self.alpha, TokenTerm(divergence, self.temperature, self.alpha))
