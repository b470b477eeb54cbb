"""Inner features of the teacher: FitNets' hints, attention transfer, or MiniLM's relations.

`hint`: `mean 1/2 ||r(F_s) - F_t||^2`, r a learned linear map (Romero et al. 2015). `attention`: `beta / (2 T) sum
||Q_s/|Q_s| - Q_t/|Q_t| ||_2`, `Q = sum_c |F_c|^p` over the T tokens, not squared, as the mean over texts (Zagoruyko &
Komodakis 2017). `relation`: `sum over queries, keys, values of KL(A_t || A_s)`, `A = softmax(X X^T / sqrt(d))` over the
tokens so far, in as many heads on both sides whatever their widths (Wang et al. 2020). With `alone` > 0 training has
FitNets' two stages: features alone up to that share of it, the next-token loss alone behind it. Shape key: B batch, T
time, D width, R relation heads.
"""

import math
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.core.errors import ConfigError
from fairway.core.seed import generator
from fairway.loss.taps import Taps
from fairway.loss.transfer import Distiller, DistillLossConfig, Lesson
from fairway.model.lm import LanguageModel

SOURCE = Source("Romero et al.", 2015, "arXiv:1412.6550")

_RELATED = ("query", "key", "value")


class Config(DistillLossConfig):
    """Settings of feature distillation."""

    of: Literal["hint", "attention", "relation"] = "hint"
    """What is compared."""
    at: tuple[float, ...] = Field(default=(0.5, 1.0), min_length=1)
    """Layers of both models, as shares of their depths."""
    power: float = Field(default=2.0, ge=1)
    """The exponent p of attention transfer."""
    beta: float = Field(default=1000.0, gt=0)
    """The weight of attention transfer, shared by the tokens of a text."""
    heads: int = Field(default=4, ge=1)
    """Relation heads; they must divide the widths of queries, keys and values of both models."""
    alone: float = Field(default=0.0, ge=0, lt=1)
    """Share of training in which features are all there is, and behind which there are none; 0 keeps both together."""

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> Distiller:
        assert teacher is not None
        return Features(self, student, teacher)

    def reads_layers(self) -> bool:
        return True


class Features(Distiller):
    """Compares what corresponding layers put out."""

    def __init__(self, config: Config, student: LanguageModel, teacher: LanguageModel) -> None:
        super().__init__(config.alpha)
        self.config = config
        parts = _RELATED if config.of == "relation" else ()
        self.taps = Taps(student, config.at, parts)
        self.teacher_taps = Taps(teacher, config.at, parts)
        if config.of == "hint":
            widths = student.config.width, teacher.config.width
            self.learned = nn.ModuleList([_regressor(*widths, place) for place in range(len(config.at))])
            self.learned.to(student.device)

    def next_token_weight(self, progress: float) -> float:
        if not self.config.alone:
            return super().next_token_weight(progress)
        return 0.0 if progress < self.config.alone else 1.0

    def loss(self, lesson: Lesson) -> Tensor | None:
        mine = self.taps.take()
        if self.config.alone and lesson.progress >= self.config.alone:
            return None
        lesson.teacher_output()
        theirs = self.teacher_taps.take()
        weight = 1.0 if self.config.alone else self.alpha
        terms = [
            self._compared(place, student, teacher)
            for place, (students, teachers) in enumerate(zip(mine, theirs, strict=True))
            for student, teacher in zip(students, teachers, strict=True)
        ]
        return weight * torch.stack(terms).sum()

    def finish(self) -> None:
        self.taps.remove()
        self.teacher_taps.remove()

    def _compared(self, place: int, student_BTD: Tensor, teacher_BTE: Tensor) -> Tensor:
        if student_BTD.shape[:2] != teacher_BTE.shape[:2]:
            raise ConfigError(
                f"The student's layer handles {student_BTD.shape[1]} tokens where the teacher's handles "
                f"{teacher_BTE.shape[1]}; features can be compared only where no layer leaves tokens out."
            )
        match self.config.of:
            case "hint":
                assert self.learned is not None
                return hint(self.learned[place](student_BTD), teacher_BTE)  # pyrefly: ignore
            case "attention":
                return attention(student_BTD, teacher_BTE, self.config.power, self.config.beta)
            case "relation":
                return relation(student_BTD, teacher_BTE, self.config.heads)


def hint(mapped_BTE: Tensor, teacher_BTE: Tensor) -> Tensor:
    """Half the squared distance, as the mean over texts, tokens and features."""
    return 0.5 * (mapped_BTE - teacher_BTE).square().mean()


def attention(student_BTD: Tensor, teacher_BTE: Tensor, power: float, beta: float) -> Tensor:
    """The distance between normalised maps of where the features are large."""
    distance_B = torch.linalg.vector_norm(_map(student_BTD, power) - _map(teacher_BTE, power), dim=1)
    return beta / (2 * student_BTD.shape[1]) * distance_B.mean()


def relation(student_BTD: Tensor, teacher_BTE: Tensor, heads: int) -> Tensor:
    """KL between causal relations of tokens, as the mean over texts, heads and tokens."""
    log_s, log_t = _relations(student_BTD, heads), _relations(teacher_BTE, heads)
    ahead_TT = torch.ones(log_s.shape[-2:], dtype=torch.bool, device=log_s.device).triu(1)
    terms = log_t.exp() * (log_t - log_s).masked_fill(ahead_TT, 0.0)
    return terms.sum(-1).mean()


def _map(x_BTD: Tensor, power: float) -> Tensor:
    x_BTD = x_BTD if x_BTD.dtype == torch.float64 else x_BTD.float()
    return nn.functional.normalize(x_BTD.abs().pow(power).sum(-1), dim=1)


def _relations(x_BTD: Tensor, heads: int) -> Tensor:
    """Log-probabilities (B, R, T, T); what lies ahead has none."""
    batch, time, width = x_BTD.shape
    if width % heads:
        raise ConfigError(f"{heads} relation heads do not divide {width} features; distill.loss.heads=1 would.")
    x_BTD = x_BTD if x_BTD.dtype == torch.float64 else x_BTD.float()
    x_BRTK = x_BTD.view(batch, time, heads, width // heads).transpose(1, 2)
    scores = x_BRTK @ x_BRTK.transpose(2, 3) / math.sqrt(width // heads)
    ahead_TT = torch.ones(time, time, dtype=torch.bool, device=x_BTD.device).triu(1)
    return scores.masked_fill(ahead_TT, float("-inf")).log_softmax(-1)


def _regressor(student: int, teacher: int, place: int) -> nn.Linear:
    linear = cast(nn.Linear, nn.utils.skip_init(nn.Linear, student, teacher))
    with torch.no_grad():
        nn.init.zeros_(linear.bias)
        linear.weight.normal_(0.0, student**-0.5, generator=generator(0, "hint", place))
    return linear
