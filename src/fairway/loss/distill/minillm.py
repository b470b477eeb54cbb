"""MiniLLM: reverse KL over whole texts, by a policy gradient with its first step computed exactly.

With student q, teacher p and `r_t = log p(y_t | y_<t) - log q(y_t | y_<t)`, the gradient of `KL(q || p) = -E_q[sum_t
r_t]` is that of `-sum_t w_t (sum_v q(v) (log p(v) - log q(v)) + R_(t+1) log q(y_t))`, `R_(t+1) = sum_(s>t) r_s` held
constant: the reward of the token at hand is summed over the vocabulary, only later ones are sampled. Texts are drawn
from `a p + (1-a) q`, and w_t corrects for it: `step` uses the source's `q(y_t) / (a p + (1-a) q)(y_t)`, `whole` the
product over the text so far, which alone is unbiased and varies more. Length normalisation divides R_(t+1) by the
number of later tokens. Each drawn text serves one update, in which the source's clipping of `q / q_old` has no effect.
Pre-training loss: `1 - alpha`. Shape key: B texts, S drawn tokens, V vocabulary.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fairway.core.config import Source
from fairway.loss.sampling import Drawn, SamplingConfig, Voice, draw
from fairway.loss.transfer import Distiller, Lesson
from fairway.model.lm import LanguageModel

SOURCE = Source("Gu et al.", 2023, "arXiv:2306.08543")


class Config(SamplingConfig):
    """Settings of MiniLLM."""

    teacher_share: float = Field(default=0.2, ge=0, lt=1)
    """The teacher's share a of the mixture that texts are drawn from."""
    importance: Literal["step", "whole"] = "step"
    """How w_t corrects for the mixture."""
    length_normalised: bool = True
    """Divide later rewards by their number."""

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> Distiller:
        assert teacher is not None
        self.check_length(student, teacher)
        return MiniLLM(self)


class MiniLLM(Distiller):
    """The policy gradient as a loss; its value is the mean exact KL of the tokens visited."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.alpha)
        self.config = config

    def loss(self, lesson: Lesson) -> Tensor:
        config = self.config
        share = config.teacher_share
        voices = [Voice(lesson.student, 1 - share, lesson.progress), Voice(lesson.teacher, share)]
        prompt_BT = config.prompts(lesson)
        drawn = draw(voices[: 2 if share else 1], prompt_BT, config.tokens, lesson.generator, lesson.boundary)
        return self.alpha * self.on(lesson, drawn).mean()

    def on(self, lesson: Lesson, drawn: Drawn) -> Tensor:
        """Of each text, the loss per token asked for."""
        inputs_BT = drawn.tokens_BT[:, :-1]
        log_q_BSV = drawn.behind(lesson.student_logits(inputs_BT)).log_softmax(-1)
        log_p_BSV = drawn.behind(lesson.teacher_logits(inputs_BT)).log_softmax(-1)
        loss_B, kl_B = self.policy_loss(log_q_BSV, log_p_BSV, drawn)
        return (kl_B.detach() + loss_B - loss_B.detach()) / drawn.count

    def policy_loss(self, log_q_BSV: Tensor, log_p_BSV: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Of each text, the sum to differentiate, and the sum of exact divergences at its tokens."""
        kept_BS = drawn.kept_BS.to(log_q_BSV.dtype)
        taken_BS1 = drawn.drawn_BS[..., None]
        log_q_BS, log_p_BS = (x.gather(-1, taken_BS1).squeeze(-1) for x in (log_q_BSV, log_p_BSV))
        single_BS = (log_q_BSV.exp() * (log_p_BSV - log_q_BSV)).sum(-1) * kept_BS
        with torch.no_grad():
            reward_BS = (log_p_BS - log_q_BS) * kept_BS
            ratio_BS = torch.where(
                drawn.kept_BS, (log_q_BS - drawn.log_p_BS.to(log_q_BS.dtype)).exp(), kept_BS.new_ones(())
            )
            now_BS, later_BS = self._weighted(ratio_BS, reward_BS)
            if self.config.length_normalised:
                later_BS = later_BS / _behind(kept_BS).clamp_min(1)
        loss_B = -(now_BS * single_BS + later_BS * kept_BS * log_q_BS).sum(1)
        return loss_B, -single_BS.sum(1)

    def _weighted(self, ratio_BS: Tensor, reward_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the exact term, and of `log q(y_t)`: corrected sums of later rewards."""
        if self.config.importance == "step":
            return ratio_BS, ratio_BS * _behind(reward_BS)
        product_BS = ratio_BS.cumprod(1)
        before_BS = torch.cat((torch.ones_like(product_BS[:, :1]), product_BS[:, :-1]), 1)
        return before_BS, _behind(product_BS * reward_BS)


def _behind(x_BS: Tensor) -> Tensor:
    """At each place, the sum over the places behind it."""
    return x_BS.flip(1).cumsum(1).flip(1) - x_BS
