"""The product of a packed matrix and a vector against its definition, on each instruction level."""

import pytest
import torch
from torch import Tensor

from fairway.core.native import LEVELS
from fairway.core.seed import generator
from fairway.ops.matvec import naive
from fairway.ops.matvec.native import FLOAT, INT4, INT8, INT16, codes_of, matvec, packed
from laws.levels import at_level

RANGES = {INT4: (-8, 7), INT8: (-128, 127), INT16: (-32_640, 32_639)}
SHAPES = [(1, 1), (17, 5), (64, 8), (100, 192), (65, 33), (15, 771)]


def drawn(rows: int, columns: int, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    random = generator(rows, "matvec", columns, kind)
    low, high = RANGES.get(kind, (-900, 900))
    code = torch.randint(low, high + 1, (rows, columns), generator=random)
    code[0, 0] = high
    return code, torch.rand(rows, generator=random) + 0.01, torch.randn(columns, generator=random)


def error(y: Tensor, code: Tensor, step: Tensor, x: Tensor) -> float:
    """In units of the largest number of the vector times the sum of a row's magnitudes."""
    size = code.double().abs().sum(1) * step.double() * x.double().abs().max()
    return float(((y.double() - naive.matvec(code, step, x)).abs() / size.clamp_min(1e-30)).max())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", [FLOAT, INT4, INT8, INT16])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_product_is_that_of_the_definition(rows: int, columns: int, kind: int, level: str) -> None:
    code, step, x = drawn(rows, columns, kind)
    with at_level(level):
        matrix = packed(code * step[:, None], None if kind == FLOAT else step)
        assert matrix.format == kind
        assert error(matvec(matrix, x), code, step, x) < 2e-7


@pytest.mark.parametrize("level", LEVELS)
def test_every_magnitude_of_the_vector_is_rounded_within_the_bound(level: str) -> None:
    code, step, x = drawn(40, 24, INT16)
    with at_level(level):
        matrix = packed(code * step[:, None], step)
        for scale in (1e-20, 1e-3, 1.0, 1e20):
            for sign in (-1.0, 1.0):
                x[3] = sign * 7.0
                assert error(matvec(matrix, x * scale), code, step, x * scale) < 2e-7
        assert not matvec(matrix, torch.zeros(24)).any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible_in_every_row(bad: float, level: str) -> None:
    code, step, x = drawn(33, 20, INT8)
    code[code == 0] = 1
    x[7] = bad
    with at_level(level):
        assert not matvec(packed(code * step[:, None], step), x).isfinite().any()


def test_only_exact_multiples_become_integers() -> None:
    code, step, _ = drawn(6, 10, INT8)
    weight = code * step[:, None]
    found = codes_of(weight, step)
    assert found is not None
    assert torch.equal(found, code)
    weight[2, 3] *= 1.001
    assert codes_of(weight, step) is None
    assert codes_of(code * 300.0 * step[:, None], step) is None
    assert packed(weight, step).format == FLOAT
