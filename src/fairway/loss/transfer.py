"""The contract of distillation: what a technique may look at, and what it adds to the loss.

`L = (1 - alpha) CE + alpha (the technique's term)`. A term over the training batch's own tokens is a `TokenTerm`, which
the next-token loss computes from the same logits; anything else is a `Distiller.loss`. Shape key: B batch, T time.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Technique
from fairway.loss.targets import TokenTerm
from fairway.model.lm import LanguageModel, Output


@dataclass(frozen=True)
class Lesson:
    """One micro-batch as a technique sees it."""

    tokens_BT: Tensor
    """(B, context + 1): inputs and, one further, targets."""
    starts_BT: Tensor | None
    """Where a document begins, if earlier ones are hidden."""
    student: LanguageModel
    output: Output
    """Of the student on the inputs."""
    teacher: LanguageModel
    progress: float
    """Share of training that is done."""
    generator: torch.Generator
    """For whatever is random in this micro-batch."""
    boundary: int
    """The token that ends a text."""

    def student_logits(self, tokens_BT: Tensor) -> Tensor:
        """The student's logits after each token of another text, differentiable."""
        hidden_BTD = self.student(tokens_BT, progress=self.progress).hidden_BTD
        return self.student.logits(hidden_BTD, self.progress)

    @torch.no_grad()
    def teacher_logits(self, tokens_BT: Tensor) -> Tensor:
        """The teacher's logits after each token of another text."""
        return self.teacher.logits(self.teacher(tokens_BT).hidden_BTD)

    @torch.no_grad()
    def teacher_output(self) -> Output:
        """The teacher on the inputs."""
        starts_BT = None if self.starts_BT is None else self.starts_BT[:, :-1]
        return self.teacher(self.tokens_BT[:, :-1], starts_BT=starts_BT)


class Distiller:
    """A technique at work between one student and one teacher."""

    token_term: TokenTerm | None = None
    """A term at every token of the training batch."""
    learned: nn.Module | None = None
    """What is trained beside the student and thrown away afterwards."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def next_token_weight(self, progress: float) -> float:  # noqa: ARG002
        """Weight of the next-token loss."""
        return 1.0 - self.alpha

    def loss(self, lesson: Lesson) -> Tensor | None:  # noqa: ARG002
        """A further term, weighted, as the mean over the micro-batch; None where there is none."""
        return None

    def finish(self) -> None:
        """Takes back what was attached to the models."""


class DistillLossConfig(Technique):
    """Settings of a distillation technique."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher's term in the loss; the next-token loss has the rest."""

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> Distiller:
        """The technique for two models; `teacher` is None where its stored predictions stand in for it."""
        raise NotImplementedError

    def reads_predictions(self) -> bool:
        """Whether stored predictions on the training text are all that it needs of the teacher."""
        return False

    def reads_layers(self) -> bool:
        """Whether it looks inside the models, which must then not be compiled."""
        return False


class TokenDistiller(Distiller):
    """Teaches by the teacher's distribution at every token of the training text."""

    def __init__(self, alpha: float, term: TokenTerm) -> None:
        super().__init__(alpha)
        self.token_term = term


class TokenLossConfig(DistillLossConfig):
    """Settings shared by the techniques that compare next-token distributions."""

    temperature: float = Field(default=1.0, gt=0, le=100)
    """Of both sides; above 1 unlikely tokens count more."""

    def reads_predictions(self) -> bool:
        return True
