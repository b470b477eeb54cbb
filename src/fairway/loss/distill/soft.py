"""Hinton's soft targets: the teacher's distribution, softened by a temperature.

`L = (1 - alpha) CE + alpha T^2 KL(softmax(z/T) || softmax(a/T))` with the teacher's logits z and the student's a. The
gradient by a is `T (p_student - p_teacher)`; as T grows it tends to `(a - z) / V`, both centred, so that logits are
matched.
"""

from pydantic import Field

from fairway.core.config import Source
from fairway.loss.targets import TokenTerm
from fairway.loss.transfer import Distiller, TokenDistiller, TokenLossConfig
from fairway.model.lm import LanguageModel
from fairway.ops.divergence.naive import forward_kl

SOURCE = Source("Hinton et al.", 2015, "arXiv:1503.02531")


class Config(TokenLossConfig):
    """Settings of soft targets."""

    temperature: float = Field(default=2.0, gt=0, le=100)
    """Of both sides; above 1 unlikely tokens count more."""

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> Distiller:  # noqa: ARG002
        return TokenDistiller(self.alpha, TokenTerm(forward_kl, self.temperature, self.alpha))
