"""The passes around an orthogonalised update against their definition, on each instruction level."""

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.ops.momentum import naive
from fairway.ops.momentum.native import descend, direction, served
from laws.levels import EVERY_LEVEL, at_level

SHAPES = [(1, 1, 1), (3, 5, 7), (2, 33, 64), (1, 130, 129)]
LEVELS = [level for level in EVERY_LEVEL if level is not None]


def drawn(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, name, str(shape)))


def relative(seen: Tensor, wanted: Tensor) -> float:
    return float((seen.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-3)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_pass_steps_the_momentum_and_scales_the_update(
    shape: tuple[int, int, int], nesterov: bool, dtype: torch.dtype, error: float, level: str
) -> None:
    gradient, momentum, u = drawn("g", *shape), drawn("m", *shape), torch.empty(shape, dtype=dtype)
    wanted, after = naive.direction(gradient.double(), momentum.double(), 0.9, nesterov)
    with at_level(level):
        direction(gradient, momentum, u, 0.9, nesterov)
    assert relative(momentum, after) < 1e-6
    assert relative(u, wanted) < error


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_pass_decays_and_descends(shape: tuple[int, int, int], dtype: torch.dtype, level: str) -> None:
    weight, o = drawn("w", *shape), drawn("o", *shape).to(dtype)
    wanted = naive.descended(weight.double(), o.double(), 0.99, 0.3)
    with at_level(level):
        descend(weight, o, 0.99, 0.3)
    assert relative(weight, wanted) < 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_pieces_of_a_stack_leave_their_neighbours_alone(level: str) -> None:
    gradient, momentum, weight = (drawn(name, 3, 10, 6) for name in "gmw")
    before, old = momentum.clone(), weight.clone()
    u = torch.empty(3, 4, 6)
    wanted, after = naive.direction(gradient[:, 2:6].double(), momentum[:, 2:6].double(), 0.9, True)
    with at_level(level):
        assert served(gradient[:, 2:6], momentum[:, 2:6], weight[:, 2:6])
        direction(gradient[:, 2:6], momentum[:, 2:6], u, 0.9, True)
        descend(weight[:, 2:6], u, 1.0, 0.5)
    assert relative(u, wanted) < 1e-6
    assert relative(momentum[:, 2:6], after) < 1e-6
    assert relative(weight[:, 2:6], naive.descended(old[:, 2:6].double(), wanted, 1.0, 0.5)) < 1e-6
    for seen, kept in ((momentum, before), (weight, old)):
        assert torch.equal(seen[:, :2], kept[:, :2])
        assert torch.equal(seen[:, 6:], kept[:, 6:])


def test_zero_stays_zero_and_what_does_not_fit_is_refused() -> None:
    with at_level("portable"):
        u = torch.ones(1, 3, 5)
        direction(torch.zeros(1, 3, 5), torch.zeros(1, 3, 5), u, 0.9, True)
        assert not u.any()
        assert not served(torch.zeros(2, 3, 5).mT)
        assert not served(torch.zeros(2, 3, 5, dtype=torch.float64))
