"""On-policy distillation: the teacher judges every token of what the student itself writes.

With probability `share` a micro-batch's text is drawn from the student, otherwise it is the training text: `L = (1 -
alpha) CE + alpha mean_t T^2 D(teacher(. | y_<t), student(. | y_<t))`, D the generalised Jensen-Shannon divergence.
Nothing is differentiated through the drawing.
"""

import torch
from pydantic import Field
from torch import Tensor

from fairway.core.config import Source
from fairway.loss.sampling import Drawn, SamplingConfig, Voice, draw
from fairway.loss.targets import Targets, TokenTerm
from fairway.loss.transfer import Distiller, Lesson
from fairway.model.lm import LanguageModel
from fairway.ops.divergence.naive import jensen_shannon

SOURCE = Source("Agarwal et al.", 2023, "arXiv:2306.13649")


class Config(SamplingConfig):
    """Settings of on-policy distillation."""

    share: float = Field(default=0.5, ge=0, le=1)
    """Probability that a micro-batch learns from the student's text."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """Of the Jensen-Shannon divergence: 0 is the forward KL, 1 the reverse one."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Of both sides of the divergence."""
    sampling_temperature: float = Field(default=1.0, gt=0)
    """Of the student while it writes."""

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> Distiller:
        assert teacher is not None
        self.check_length(student, teacher)
        return OnPolicy(self)


class OnPolicy(Distiller):
    """A divergence at the tokens of the student's own text, or of as much training text."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.alpha)
        self.config = config
        self.term = TokenTerm(jensen_shannon(config.beta), config.temperature, config.alpha)

    def loss(self, lesson: Lesson) -> Tensor:
        config = self.config
        if float(torch.rand((), generator=lesson.generator)) >= config.share:
            return self._on_training_text(lesson)
        student = [Voice(lesson.student, progress=lesson.progress)]
        prompt_BT = config.prompts(lesson)
        drawn = draw(student, prompt_BT, config.tokens, lesson.generator, lesson.boundary, config.sampling_temperature)
        return self.on(lesson, drawn)

    def on(self, lesson: Lesson, drawn: Drawn) -> Tensor:
        """The term's mean over the drawn tokens."""
        inputs_BT = drawn.tokens_BT[:, :-1]
        student_BSV = drawn.behind(lesson.student_logits(inputs_BT))
        teacher_BSV = drawn.behind(lesson.teacher_logits(inputs_BT))
        return self._term(student_BSV, teacher_BSV, drawn.kept_BS.flatten())

    def _on_training_text(self, lesson: Lesson) -> Tensor:
        rows = slice(0, self.config.sequences)
        hidden_BTD = lesson.output.hidden_BTD[rows]
        starts_BT = None if lesson.starts_BT is None else lesson.starts_BT[rows, :-1]
        with torch.no_grad():
            taught = lesson.teacher(lesson.tokens_BT[rows, :-1], starts_BT=starts_BT)
            teacher_BTV = lesson.teacher.logits(taught.hidden_BTD)
        return self._term(lesson.student.logits(hidden_BTD, lesson.progress), teacher_BTV, None)

    def _term(self, student_BTV: Tensor, teacher_BTV: Tensor, kept_N: Tensor | None) -> Tensor:
        targets = Targets.of(teacher_BTV.flatten(0, 1), self.term.temperature)
        return self.term.loss(student_BTV.flatten(0, 1), targets, kept_N)
