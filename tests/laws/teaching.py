"""Small students and teachers, and the lesson that a technique gets of them."""

import torch
from torch import Tensor

from fairway.core.config import override
from fairway.core.seed import generator
from fairway.loss.transfer import Lesson
from fairway.model.lm import LanguageModel, ModelConfig

NEVER = -1
"""A boundary that no text holds."""


def made(seed: int, *changes: str, vocabulary: int = 3) -> LanguageModel:
    """A tiny model in float64 whose every parameter matters."""
    base = ["width=8", "context=8", "depth=1", "head.softcap=null"]
    if "mixer=mamba" not in changes:
        base.append("mixer.heads=2")
    model = ModelConfig.read(override({}, [*base, *changes])).build(vocabulary, seed).double()
    source = generator(seed, "shaken")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return model


def lesson(student: LanguageModel, teacher: LanguageModel, tokens_BT: Tensor, boundary: int = NEVER) -> Lesson:
    """The lesson of a text."""
    output = student(tokens_BT[:, :-1])
    return Lesson(tokens_BT, None, student, output, teacher.eval(), 0.5, generator(0, "lesson"), boundary)


def text(vocabulary: int, rows: int = 2, time: int = 9, seed: int = 0) -> Tensor:
    """Random tokens (rows, time)."""
    return torch.randint(vocabulary, (rows, time), generator=generator(seed, "text"))


def gradients(loss: Tensor, model: LanguageModel) -> list[Tensor]:
    """Of every parameter, zeros where it plays no part."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(found, model.parameters(), strict=True)
    return [torch.zeros_like(parameter) if gradient is None else gradient for gradient, parameter in pairs]


def close(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-10) -> bool:
    """Whether all gradients agree."""
    return all(torch.allclose(a, b, atol=tolerance, rtol=1e-8) for a, b in zip(left, right, strict=True))
