"""Symmetric products against their definition, on each instruction level."""

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.ops.symmetric import naive
from fairway.ops.symmetric.native import product, triangle
from laws.levels import EVERY_LEVEL, at_level

SIDES = [(1, 1, 2), (2, 7, 6), (3, 16, 32), (1, 33, 20), (2, 50, 96), (1, 96, 200)]


def drawn(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, name, str(shape)), dtype=torch.float64)


def relative(seen: Tensor, wanted: Tensor) -> float:
    return float((seen.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("shape", SIDES)
def test_a_triangle_and_its_mirror_image_are_the_whole_product(
    shape: tuple[int, int, int], dtype: torch.dtype, error: float, level: str | None
) -> None:
    if level is None:
        pytest.skip("the kernels are switched off")
    count, side, _ = shape
    a, half = drawn("a", *shape).to(dtype), drawn("d", count, side, side).to(dtype)
    d = half + half.mT
    with at_level(level):
        plain, added = triangle(a, a), triangle(a, a, d, alpha=0.5, beta=-2.0)
    assert relative(plain, naive.product(a.double(), a.double())) < error
    assert relative(added, naive.product(a.double(), a.double(), d.double(), 0.5, -2.0)) < error
    assert torch.equal(plain, plain.mT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_either_way_gives_the_product_of_matrices_that_commute(dtype: torch.dtype) -> None:
    x = drawn("x", 2, 40, 64) / 8
    a = (x @ x.mT).to(dtype)
    wanted = naive.product(a.double() @ a.double(), a.double(), a.double(), 0.3, 0.7)
    seen = product(product(a, a), a, a, alpha=0.3, beta=0.7)
    assert relative(seen, wanted) < {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert relative(product(a, a), a.double() @ a.double()) < 1e-2


def test_an_odd_depth_and_a_transposed_view_are_taken_too() -> None:
    x = drawn("x", 2, 33, 9).bfloat16()
    assert relative(product(x, x), naive.product(x.double(), x.double())) < 1e-2
    assert relative(product(x.mT, x.mT), naive.product(x.mT.double(), x.mT.double())) < 1e-2
