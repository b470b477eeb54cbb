"""Log-probabilities of soft-capped logits against their definition, on each instruction level."""

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.ops.log_softmax import naive
from fairway.ops.log_softmax.native import log_softmax_, total_probability
from laws.levels import EVERY_LEVEL, at_level


def draw(*shape: int) -> Tensor:
    return 20 * torch.randn(shape, generator=generator(0, "logits"), dtype=torch.float64)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("cap", [None, 15.0])
@pytest.mark.parametrize(("rows", "width"), [(0, 7), (1, 1), (5, 2), (3, 16), (4, 37), (2, 1024)])
def test_it_is_the_definition(rows: int, width: int, cap: float | None, level: str | None) -> None:
    z = draw(rows, 2, width).float()
    wanted = naive.log_softmax(z.double(), cap)
    with at_level(level):
        seen = log_softmax_(z.clone(), cap)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen.double(), wanted, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_other_formats_and_views_are_served_too(level: str | None) -> None:
    z = draw(4, 6, 9)
    with at_level(level):
        for given in (z, z.bfloat16(), z.float().transpose(0, 1)):
            seen = log_softmax_(given.clone(memory_format=torch.preserve_format), 15.0)
            wanted = naive.log_softmax(given.double(), 15.0)
            torch.testing.assert_close(seen.double(), wanted, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("cap", [None, 15.0])
def test_nan_takes_its_row_and_no_other_and_minus_infinity_is_no_chance(cap: float | None, level: str | None) -> None:
    z = draw(3, 37).float()
    z[1, 35], z[2, 3] = float("nan"), -float("inf")
    wanted = naive.log_softmax(z.double(), cap)
    with at_level(level):
        seen = log_softmax_(z.clone(), cap)
    assert seen[1].isnan().all()
    torch.testing.assert_close(seen.double(), wanted, rtol=1e-6, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("width", [1, 15, 16, 37, 1024])
def test_the_probability_of_a_row_is_counted_whatever_it_is(width: int, level: str | None) -> None:
    log_p = draw(3, 2, width).log_softmax(-1) + torch.tensor([0.0, 0.1, -2.0])[:, None, None]
    wanted = naive.total_probability(log_p)
    with at_level(level):
        torch.testing.assert_close(total_probability(log_p.float()).double(), wanted, rtol=1e-5, atol=0)
        torch.testing.assert_close(total_probability(log_p), wanted)
        log_p[1, 0, 0] = float("nan")
        assert total_probability(log_p.float()).isfinite().flatten().tolist() == [True, True, False, True, True, True]
