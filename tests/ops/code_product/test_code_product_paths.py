"""Products of many vectors and a packed matrix against their definition, on each instruction level."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairway.core.native import LEVELS
from fairway.core.seed import generator
from fairway.ops.code_product import naive
from fairway.ops.code_product.native import code_product, worthwhile
from fairway.ops.matvec.native import INT8, packed
from laws.levels import at_level

SHAPES = [(1, 1, 1), (5, 17, 5), (1, 64, 8), (26, 100, 192), (49, 65, 33), (3, 15, 771), (0, 4, 4), (8, 200, 16)]
"""Vectors, outputs, inputs."""
ERROR = 2e-7
"""In units of the largest number of a vector times the sum of the magnitudes of a row."""


def drawn(vectors: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    random = generator(vectors, "code product", rows, columns)
    code = torch.randint(-128, 128, (rows, columns), generator=random)
    x = torch.randn(vectors, columns, generator=random)
    return code, torch.rand(rows, generator=random) + 0.01, x * torch.logspace(-9, 9, vectors)[:, None]


def error(y: Tensor, code: Tensor, step: Tensor, x: Tensor) -> float:
    assert y.shape == (len(x), len(code))
    if not y.numel():
        return 0.0
    size = (code.double().abs().sum(1) * step.double()) * x.double().abs().amax(1, keepdim=True)
    return float(((y.double() - naive.code_product(code, step, x)).abs() / size.clamp_min(1e-30)).max())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("vectors", "rows", "columns"), SHAPES)
def test_the_products_are_those_of_the_definition(vectors: int, rows: int, columns: int, level: str) -> None:
    code, step, x = drawn(vectors, rows, columns)
    with at_level(level):
        matrix = packed(code * step[:, None], step, 8)
        assert matrix.format == INT8
        assert error(code_product(matrix, x), code, step, x) < ERROR


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 140), st.integers(1, 140))
def test_shapes_that_nobody_chose(vectors: int, rows: int, columns: int) -> None:
    code, step, x = drawn(vectors, rows, columns)
    with at_level("avx512bf16"):
        y = code_product(packed(code * step[:, None], step, 8), x)
        assert error(y, code, step, x) < ERROR


@pytest.mark.parametrize("level", LEVELS)
def test_a_product_rounds_no_more_than_one_of_floats(level: str) -> None:
    code, step, x = drawn(1, 96, 192)
    code, x = code.clamp(-20, 20), torch.randn(40, 192, generator=generator(0, "floats"))
    weight, wanted = code * step[:, None], naive.code_product(code, step, x)
    with at_level(level):
        ours = (code_product(packed(weight, step, 8), x).double() - wanted).norm()
    assert ours <= 1.1 * ((x @ weight.T).double() - wanted).norm()


@pytest.mark.parametrize("level", LEVELS)
def test_a_vector_does_not_depend_on_those_beside_it(level: str) -> None:
    code, step, x = drawn(50, 70, 36)
    with at_level(level):
        matrix = packed(code * step[:, None], step, 8)
        y = code_product(matrix, x)
        assert torch.equal(y, torch.cat([code_product(matrix, x[n : n + 1]) for n in range(len(x))]))
        assert torch.equal(y.view(5, 10, 70), code_product(matrix, x.view(5, 10, 36)))
        assert torch.equal(y, code_product(matrix, x.T.contiguous().T))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible_in_its_vector_alone(bad: float, level: str) -> None:
    code, step, _ = drawn(1, 33, 20)
    code[code == 0] = 1
    x = torch.ones(5, 20)
    x[2, 7] = bad
    with at_level(level):
        y = code_product(packed(code * step[:, None], step, 8), x)
    assert not y[2].isfinite().any()
    assert y[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("level", LEVELS)
def test_products_with_nothing_are_nothing(level: str) -> None:
    code, step, _ = drawn(1, 33, 20)
    with at_level(level):
        assert not code_product(packed(code * step[:, None], step, 8), torch.zeros(3, 20)).any()


def test_only_levels_that_multiply_bytes_are_worth_it() -> None:
    with at_level(None):
        assert not worthwhile()
    with at_level("portable"):
        assert not worthwhile()
