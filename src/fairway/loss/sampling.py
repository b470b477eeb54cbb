"""Texts drawn from one model, or token by token from a mixture of several, through their decoding states.

`y_t ~ sum_i share_i softmax(logits_i(y_<t) / temperature)`; temperature 0 takes the likeliest token. A text ends with
its first boundary; what is drawn behind it is marked as not kept. Shape key: B texts, T prompt, S drawn tokens, V
vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from fairway.core.errors import ConfigError
from fairway.loss.transfer import DistillLossConfig, Lesson
from fairway.model.lm import LanguageModel


@dataclass(frozen=True)
class Voice:
    """A model's part in a mixture."""

    model: LanguageModel
    share: float = 1.0
    progress: float = 1.0


@dataclass(frozen=True)
class Drawn:
    """Prompts and what was drawn behind them."""

    tokens_BT: Tensor
    """(B, T + S)."""
    log_p_BS: Tensor
    """Log-probability of each drawn token under the mixture that it was drawn from, in float64."""
    kept_BS: Tensor
    """True up to the first boundary, it included."""

    @property
    def count(self) -> int:
        """S."""
        return self.log_p_BS.shape[1]

    @property
    def drawn_BS(self) -> Tensor:
        """The drawn tokens alone."""
        return self.tokens_BT[:, -self.count :]

    def behind(self, x_BTV: Tensor) -> Tensor:
        """Of outputs after every token but the last, those that predict drawn tokens."""
        return x_BTV[:, -self.count :]


class SamplingConfig(DistillLossConfig):
    """Settings shared by the techniques that learn from drawn texts."""

    prompt: int = Field(default=16, ge=1)
    """Tokens of training text that a drawn text goes on from."""
    tokens: int = Field(default=48, ge=1)
    """Tokens drawn."""
    sequences: int = Field(default=4, ge=1)
    """Texts drawn for each micro-batch, at most one for each of its sequences."""

    def prompts(self, lesson: Lesson) -> Tensor:
        """The beginnings of the micro-batch's first sequences."""
        return lesson.tokens_BT[: self.sequences, : self.prompt]

    def check_length(self, *models: LanguageModel) -> None:
        """Raises `ConfigError` where prompt and drawn tokens exceed a model's context."""
        longest = min(model.config.context for model in models)
        if self.prompt + self.tokens > longest + 1:
            raise ConfigError(
                f"A prompt of {self.prompt} and {self.tokens} drawn tokens need a context of "
                f"{self.prompt + self.tokens - 1}; the models have {longest}. "
                "Smaller distill.loss.prompt and distill.loss.tokens would work."
            )


@torch.no_grad()
def draw(
    voices: Sequence[Voice],
    prompt_BT: Tensor,
    count: int,
    generator: torch.Generator,
    boundary: int,
    temperature: float = 1.0,
) -> Drawn:
    """Continues every prompt by `count` tokens; `generator` lives on the CPU, where tokens are drawn."""
    tokens, logs = [prompt_BT], []
    states = [None for _ in voices]
    with _evaluating([voice.model for voice in voices]):
        for _ in range(count):
            p_BV = torch.zeros((), dtype=torch.float64, device=prompt_BT.device)
            after = []
            for voice, state in zip(voices, states, strict=True):
                output = voice.model(tokens[-1], state, progress=voice.progress)
                logits_BV = voice.model.logits(output.hidden_BTD[:, -1:], voice.progress)[:, -1]
                p_BV = p_BV + voice.share * _probabilities(logits_BV, temperature)
                after.append(output.state)
            states = after
            tokens.append(torch.multinomial(p_BV.cpu(), 1, generator=generator).to(prompt_BT.device))
            logs.append(p_BV.gather(1, tokens[-1]).log())
    tokens_BT = torch.cat(tokens, 1)
    ended_BS = (tokens_BT[:, -count:] == boundary).cumsum(1)
    before_BS = ended_BS - (tokens_BT[:, -count:] == boundary).long()
    return Drawn(tokens_BT, torch.cat(logs, 1), before_BS == 0)


def _probabilities(logits_BV: Tensor, temperature: float) -> Tensor:
    logits_BV = logits_BV.double()
    if temperature == 0:
        return torch.zeros_like(logits_BV).scatter_(1, logits_BV.argmax(1, keepdim=True), 1.0)
    return (logits_BV / temperature).softmax(1)


@contextmanager
def _evaluating(models: Sequence[LanguageModel]) -> Iterator[None]:
    """The models as they are when used, not trained, inside the block."""
    with ExitStack() as after:
        for model in models:
            after.callback(model.train, model.training)
            model.eval()
        yield
