"""The likeliest tokens against their definition, on each instruction level."""

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.ops.likeliest import naive
from fairway.ops.likeliest.native import likeliest
from laws.levels import EVERY_LEVEL, at_level

SHAPES = [(0, 5, 2), (1, 1, 1), (3, 2, 1), (4, 37, 5), (2, 37, 37), (5, 300, 32), (3, 1024, 7), (2, 1031, 200)]


def draw(rows: int, width: int) -> Tensor:
    return 8 * torch.randn(rows, width, generator=generator(0, "logits"), dtype=torch.float64)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("cap", "temperature"), [(None, 1.0), (15.0, 2.5)])
@pytest.mark.parametrize(("rows", "width", "few"), SHAPES)
def test_they_are_those_of_the_definition(
    rows: int, width: int, few: int, cap: float | None, temperature: float, level: str | None
) -> None:
    z = draw(rows, width).float()
    wanted = naive.likeliest(z.double(), few, cap, temperature)
    with at_level(level):
        log_p, index = likeliest(z, few, cap, temperature)
    assert torch.equal(index, wanted[1])
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.double(), wanted[0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("level", EVERY_LEVEL[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_logits_the_smallest_ids_are_taken(dtype: torch.dtype, level: str) -> None:
    z = draw(40, 300).round().clamp(-6, 6).to(dtype)
    z[0], z[1, ::2] = 0.0, -0.0
    wanted = naive.likeliest(z.double(), 32, None, 1.0)
    with at_level(level):
        log_p, index = likeliest(z, 32, None, 1.0)
    assert torch.equal(index, wanted[1])
    torch.testing.assert_close(log_p.double(), wanted[0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_minus_infinity_is_no_chance_and_nan_takes_its_row_and_no_other(level: str | None) -> None:
    z = draw(4, 100).float()
    z[1], z[2, 20:], z[3, 99] = float("nan"), -float("inf"), float("nan")
    with at_level(level):
        log_p, index = likeliest(z, 25, 15.0, 1.0)
    assert log_p[[1, 3]].isnan().all()
    wanted = naive.likeliest(z[:1].double(), 25, 15.0, 1.0)
    assert torch.equal(index[:1], wanted[1])
    assert sorted(index[2, :20].tolist()) == list(range(20))
    assert all(len(set(row)) == 25 and min(row) >= 0 and max(row) < 100 for row in index.tolist())


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_other_formats_and_views_are_served_too(level: str | None) -> None:
    z = draw(9, 12)
    for given in (z, z.half(), z.float().T):
        wanted = naive.likeliest(given.double(), 3, 15.0, 1.0)
        with at_level(level):
            log_p, index = likeliest(given, 3, 15.0, 1.0)
        assert torch.equal(index, wanted[1])
        torch.testing.assert_close(log_p.double(), wanted[0], rtol=1e-6, atol=1e-5)
