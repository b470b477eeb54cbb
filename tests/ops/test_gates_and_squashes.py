"""The kernels of gates and of squashing functions against their definitions, on each instruction level."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.ops.gate import naive as gate_naive
from fairway.ops.gate.apart import gate_apart
from fairway.ops.gate.native import gate
from fairway.ops.squash import naive as squash_naive
from fairway.ops.squash.native import squash
from laws.levels import EVERY_LEVEL, at_level

DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)]


def draw(name: str, *shape: int) -> Tensor:
    return 2 * torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


def relative(seen: Tensor, wanted: Tensor) -> float:
    assert seen.shape == wanted.shape
    return float((seen.detach().double() - wanted.detach()).norm() / wanted.detach().norm().clamp_min(1e-12))


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("width", [1, 16, 37])
@pytest.mark.parametrize("point", gate_naive.POINTS)
def test_a_gate_and_its_gradient(
    point: gate_naive.Point, width: int, rows: int, dtype: torch.dtype, error: float, level: str | None
) -> None:
    x, up = draw("x", rows, 2, 2 * width).to(dtype).requires_grad_(), draw("up", rows, 2, width).to(dtype)
    wide = x.detach().double().requires_grad_()
    wanted_y = gate_naive.gate(wide, point)
    (wanted,) = torch.autograd.grad(wanted_y, wide, up.double())
    with at_level(level):
        y = gate(x, point)
        (seen,) = torch.autograd.grad(y, x, up)
    assert y.dtype == seen.dtype == dtype
    assert relative(y, wanted_y) < error
    assert relative(seen, wanted) < error


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("width", [1, 37])
@pytest.mark.parametrize("point", gate_naive.POINTS)
def test_a_gate_of_halves_that_lie_apart_and_its_gradients(
    point: gate_naive.Point, width: int, rows: int, dtype: torch.dtype, error: float, level: str | None
) -> None:
    """The gate is part of a wider tensor, the other half lies with its features apart."""
    x, other = draw("x", rows, 2, 3 * width).to(dtype), draw("other", width, rows, 2).to(dtype)
    up = draw("up", rows, 2, width).to(dtype)
    first, second = x[..., width : 2 * width].requires_grad_(), other.permute(1, 2, 0).requires_grad_()
    wide, far = (half.detach().double().requires_grad_() for half in (first, second))
    wanted_y = gate_naive.gate_apart(wide, far, point)
    wanted = torch.autograd.grad(wanted_y, (wide, far), up.double())
    with at_level(level):
        y = gate_apart(first, second, point)
        seen = torch.autograd.grad(y, (first, second), up)
    assert y.dtype == dtype
    assert relative(y, wanted_y) < error
    for one, other_one in zip(seen, wanted, strict=True):
        assert one.dtype == dtype
        assert relative(one, other_one) < error


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
@pytest.mark.parametrize("parts", ["", "shift", "gain_D", "bias_D", "shift gain_D bias_D"])
@pytest.mark.parametrize("width", [1, 16, 37])
@pytest.mark.parametrize("point", ["tanh", "erf"])
def test_a_squash_and_all_its_gradients(
    point: squash_naive.Point, width: int, parts: str, dtype: torch.dtype, error: float, level: str | None
) -> None:
    x, up = draw("x", 7, 3, width).to(dtype), draw("up", 7, 3, width).to(dtype)
    learned = [torch.tensor(0.7), *(draw(part, *([width] * (part != "shift"))).float() for part in parts.split())]
    wide, given = ([t.detach().to(kind).requires_grad_() for t in (x, *learned)] for kind in (torch.float64, None))
    none = dict.fromkeys(("shift", "gain_D", "bias_D"))
    names = ("x", "alpha", *parts.split())
    arguments: dict[str, Any] = {**none, **dict(zip(names, given, strict=True))}
    wide_arguments: dict[str, Any] = {**none, **dict(zip(names, wide, strict=True))}
    wanted_y = squash_naive.squash(**wide_arguments, point=point)
    wanted = torch.autograd.grad(wanted_y, wide, up.double())
    with at_level(level):
        y = squash(**arguments, point=point)
        seen = torch.autograd.grad(y, given, up)
    assert y.dtype == dtype
    assert relative(y, wanted_y) < error
    for name, one, other in zip(names, seen, wanted, strict=True):
        # Sums over rows cancel: their error is measured against the size of what is summed.
        size = 0 if name == "x" else 6 * math.sqrt(up.numel())
        assert (one.double() - other).norm() < error * (other.norm() + size), name


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_point_functions_are_accurate_everywhere(level: str | None) -> None:
    """Relative error in float32, from the smallest numbers to where the functions are constant."""
    size = torch.logspace(-20, 2, 4001, dtype=torch.float32)
    x = torch.cat((-size.flip(0), size))
    pairs = torch.stack((x, torch.ones_like(x)), 1)
    with at_level(level):
        one = torch.ones(())
        for point in get_args(squash_naive.Point):
            seen = squash(x, one, None, None, None, point).double()
            wanted = squash_naive.squash(x.double(), one.double(), None, None, None, point)
            assert ((seen - wanted) / wanted).abs().max() < 4e-7
        for point in gate_naive.POINTS:
            seen, wanted = gate(pairs, point).double(), gate_naive.gate(pairs.double(), point)
            assert ((seen - wanted).abs() <= 1e-6 * wanted.abs() + 3e-7 * x.abs().clamp_max(1)[:, None]).all(), point


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("point", get_args(squash_naive.Point))
def test_the_slopes_of_squashes_are_accurate_everywhere(point: squash_naive.Point, level: str | None) -> None:
    """To a few units in the last place of the steepest."""
    x, one = torch.linspace(-6, 6, 40_001).requires_grad_(), torch.ones(())
    wide = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(squash_naive.squash(wide, one.double(), None, None, None, point).sum(), wide)
    with at_level(level):
        (seen,) = torch.autograd.grad(squash(x, one, None, None, None, point).sum(), x)
    assert (seen - wanted).abs().max() < 6e-7


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_what_is_not_a_number_stays_visible_and_where_it_is(level: str | None) -> None:
    with at_level(level):
        x = torch.ones(3, 40)
        x[1, 4] = float("nan")
        for point in gate_naive.POINTS:
            y = gate(x, point)
            assert y[1, 4].isnan()
            assert int(y.isnan().sum()) == 1
        for point in get_args(squash_naive.Point):
            y = squash(x, torch.ones(()), None, None, None, point)
            assert y[1, 4].isnan()
            assert int(y.isnan().sum()) == 1
            large = squash(torch.tensor([math.inf, -math.inf]), torch.ones(()), None, None, None, point)
            assert large.tolist() == [1.0, -1.0]


def test_the_registered_ops_are_differentiable_and_have_fakes() -> None:
    with at_level("portable"):
        x = draw("x", 3, 10).float().requires_grad_()
        vectors = [draw(name, 10).float().requires_grad_() for name in ("gain", "bias")]
        scalars = [torch.tensor(0.5, requires_grad=True), torch.tensor(0.1, requires_grad=True)]
        ops = torch.ops.fairway
        results = [
            torch.library.opcheck(ops.gate.default, (x, 3)),
            torch.library.opcheck(ops.squash.default, (x, *scalars, *vectors, True)),
            torch.library.opcheck(ops.squash.default, (x, scalars[0], None, None, None, False)),
        ]
    assert all(set(result.values()) == {"SUCCESS"} for result in results)


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_denormal_numbers_are_not_taken_for_zeros(level: str | None) -> None:
    tiny = torch.full((2, 33), 2.0**-130, dtype=torch.bfloat16)
    with at_level(level):
        y = gate(torch.cat((tiny, torch.ones_like(tiny)), dim=-1), "identity")
    assert torch.equal(y, tiny)
