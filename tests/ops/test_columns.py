"""The block of columns by the native kernel and by matrix products against the definition."""

import pytest
import torch
from torch import Tensor

from fairway.core.native import level
from fairway.ops.columns import naive, native


def drawn(columns: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, what is kept, an upper factor and steps, in float64."""
    random = torch.Generator().manual_seed(columns * 1000 + rows)
    x = torch.randn(3 * columns, columns, generator=random, dtype=torch.float64)
    upper_BB = torch.linalg.cholesky(torch.linalg.inv(x.T @ x / len(x)), upper=True)
    work_BR = torch.randn(columns, rows, generator=random, dtype=torch.float64)
    kept_BR = torch.rand(columns, rows, generator=random) < 0.8
    return work_BR, kept_BR, upper_BB, torch.rand(rows, generator=random, dtype=torch.float64) + 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (5, 3), (40, 65), (128, 100)])
@pytest.mark.parametrize("pattern", [None, (2, 4), (4, 8), (1, 3)])
def test_every_path_prunes_as_the_definition(
    dtype: torch.dtype, columns: int, rows: int, pattern: tuple[int, int] | None
) -> None:
    if dtype == torch.float32 and level() is None:
        pytest.skip("the native library was not built")
    work, kept, upper, _ = drawn(columns, rows)
    expected_work, expected_kept = work.clone(), kept.clone()
    expected = naive.solve(expected_work, expected_kept, upper, None, pattern)
    found_work, found_kept = work.to(dtype), kept.clone()
    found = native.solve(found_work, found_kept, upper.to(dtype), None, pattern)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    assert torch.equal(found_kept, expected_kept)
    assert torch.allclose(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.allclose(found_work.double(), expected_work, rtol=tolerance, atol=tolerance)
    assert not found_work[~found_kept].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (7, 33), (128, 100)])
def test_every_path_rounds_as_the_definition(dtype: torch.dtype, columns: int, rows: int) -> None:
    """A rounding that falls the other way in float32 changes what follows, so nearly all rows must agree, and the sum
    of squared errors."""
    if dtype == torch.float32 and level() is None:
        pytest.skip("the native library was not built")
    work, kept, upper, step = drawn(columns, rows)
    expected_work = work.clone()
    expected = naive.solve(expected_work, kept.clone(), upper, step, None)
    found_work = work.to(dtype)
    found = native.solve(found_work, kept.clone(), upper.to(dtype), step.to(dtype), None)
    agree_R = ((found_work.double() - expected_work).abs() < 1e-4).all(dim=0)
    assert float(agree_R.float().mean()) > 0.95
    assert float(found.double().square().sum()) == pytest.approx(float(expected.square().sum()), rel=0.02)
    codes = found_work / step.to(dtype)
    assert torch.allclose(codes, codes.round(), atol=1e-3)


def test_numbers_far_beyond_the_steps_stay_what_they_are() -> None:
    work = torch.full((2, 40), 3.0e8)
    native.solve(work, torch.ones(2, 40, dtype=torch.bool), torch.eye(2), torch.ones(40), None)
    assert bool((work == 3.0e8).all())
