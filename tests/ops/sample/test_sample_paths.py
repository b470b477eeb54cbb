"""Drawing a token natively against its definition, on each instruction level."""

import pytest
import torch

from fairway.core.native import LEVELS
from fairway.core.seed import generator
from fairway.ops.sample import naive
from fairway.ops.sample.native import sample
from laws.levels import at_level

SETTINGS = [
    (1.0, None, None, None),
    (0.8, None, 0.9, None),
    (0.5, 5, None, None),
    (1.3, 20, 0.7, None),
    (1.0, None, None, 0.05),
    (2.0, 7, 0.99, 0.2),
    (1.0, 1, None, None),
    (1.0, 10_000, 1.0, 0.0),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("vocabulary", [1, 2, 37, 300])
def test_every_draw_is_that_of_the_definition(
    vocabulary: int, settings: tuple[float, int | None, float | None, float | None], level: str
) -> None:
    logits = 3 * torch.randn(vocabulary, generator=generator(vocabulary, "logits"))
    logits[vocabulary // 2] = logits[0]
    draws = torch.linspace(0, 1 - 1e-9, 101, dtype=torch.float64).tolist()
    with at_level(level):
        seen = [sample(logits, *settings, uniform) for uniform in draws]
    wanted = [naive.sample(logits, *settings, uniform) for uniform in draws]
    assert seen == wanted


@pytest.mark.parametrize("level", [None, *LEVELS])
def test_tokens_come_as_often_as_they_are_likely(level: str | None) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    settings = (0.9, 4, 0.95, None)
    wanted = naive.probabilities(logits, *settings)
    draws = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    with at_level(level):
        counts = torch.bincount(torch.tensor([sample(logits, *settings, u) for u in draws.tolist()]), minlength=5)
    assert torch.allclose(counts.double() / 2000, wanted, atol=1e-3)


@pytest.mark.parametrize("level", [None, *LEVELS])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_a_broken_promise(bad: float, level: str | None) -> None:
    logits = torch.zeros(40)
    logits[21] = bad
    with at_level(level), pytest.raises(AssertionError, match="not finite"):
        sample(logits, 1.0, None, 0.9, None, 0.5)
