"""Sequence-level distillation: the student learns to write what the teacher writes.

`L = (1 - alpha) CE(text) + alpha CE(student; y)`, y drawn from the teacher behind a prompt of training text. At
temperature 1 its expectation is the KL from teacher to student over whole continuations, up to a constant; at
temperature 0 it is the likeliest-token form of the source's decoded targets.
"""

from pydantic import Field
from torch import Tensor

from fairway.core.config import Source
from fairway.loss.sampling import Drawn, SamplingConfig, Voice, draw
from fairway.loss.targets import masked_mean
from fairway.loss.transfer import Distiller, Lesson
from fairway.model.lm import LanguageModel

SOURCE = Source("Kim & Rush", 2016, "arXiv:1606.07947")


class Config(SamplingConfig):
    """Settings of sequence-level distillation."""

    temperature: float = Field(default=1.0, ge=0)
    """Of the teacher's text; 0 takes its likeliest token each time."""

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> Distiller:
        assert teacher is not None
        self.check_length(student, teacher)
        return SequenceLevel(self)


class SequenceLevel(Distiller):
    """Cross-entropy on the teacher's continuations."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.alpha)
        self.config = config

    def loss(self, lesson: Lesson) -> Tensor:
        config = self.config
        teacher = [Voice(lesson.teacher)]
        drawn = draw(
            teacher, config.prompts(lesson), config.tokens, lesson.generator, lesson.boundary, config.temperature
        )
        return self.alpha * self.on(lesson, drawn)

    def on(self, lesson: Lesson, drawn: Drawn) -> Tensor:
        """Mean nats of the student at the drawn tokens."""
        logits_BSV = drawn.behind(lesson.student_logits(drawn.tokens_BT[:, :-1]))
        log_s_BS = logits_BSV.log_softmax(-1).gather(-1, drawn.drawn_BS[..., None]).squeeze(-1)
        return masked_mean(-log_s_BS, drawn.kept_BS)
