"""Newton-Schulz against the singular value decomposition, and against the band its coefficients promise."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fairway.optim.orthogonal import CUBIC, CoefficientName, coefficients, long_periods, orthogonalise


def with_spectrum(spectrum: Tensor, columns: int, seed: int = 0) -> Tensor:
    """A matrix of given singular values over their root sum of squares, float64."""
    source = torch.Generator().manual_seed(seed)
    rows = len(spectrum)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=source, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, rows, generator=source, dtype=torch.float64)).Q
    return left @ torch.diag(spectrum) @ right.T


def spread(rows: int, smallest: float) -> Tensor:
    """Singular values from large to `smallest`, relative to their own Frobenius norm."""
    values = torch.logspace(0, -4, rows, dtype=torch.float64)
    values = values / values.norm()
    return values[values >= smallest]


def singular(x: Tensor) -> Tensor:
    return torch.linalg.svdvals(x.double())


ONE_BY_ONE = (1, 1, 1, 1, 1)
FORMS = [
    (torch.float64, ONE_BY_ONE),
    (torch.float64, (2, 2, 1)),
    (torch.float32, ONE_BY_ONE),
    (torch.float32, (2, 2, 1)),
    (torch.bfloat16, ONE_BY_ONE),
    (torch.bfloat16, (2, 2, 1)),
]


@pytest.mark.parametrize(("dtype", "periods"), FORMS)
@pytest.mark.parametrize("columns", [64, 256])
def test_five_classic_steps_land_in_the_band(dtype: torch.dtype, periods: tuple[int, ...], columns: int) -> None:
    slack = 0.02 if dtype == torch.bfloat16 else 1e-3
    for seed in range(3):
        matrix = with_spectrum(spread(64, 0.01), columns, seed)
        values = singular(orthogonalise(matrix.to(dtype)[None].clone(), coefficients("classic", 5), periods)[0])
        assert values.min() > 0.682 - slack
        assert values.max() < 1.134 + slack
        small = with_spectrum(spread(64, 0.002), columns, seed)
        values = singular(orthogonalise(small.to(dtype)[None].clone(), coefficients("classic", 5), periods)[0])
        assert values.max() < 1.2024 + slack


@pytest.mark.parametrize("shape", [(12, 6), (6, 12), (256, 64), (64, 256)])
def test_one_large_direction_on_few_features_does_not_explode(shape: tuple[int, int]) -> None:
    source = torch.Generator().manual_seed(0)
    small = min(shape)
    for _ in range(40):
        left, right = (torch.randn(side, small, generator=source, dtype=torch.float64) for side in shape)
        (left if shape[0] < shape[1] else right)[6:, 0] = 0
        spectrum = torch.cat((torch.ones(1), 10 ** (-1.5 - 2 * torch.rand(small - 1, generator=source)))).double()
        matrix = torch.linalg.qr(left).Q * spectrum @ torch.linalg.qr(right).Q.T
        result = orthogonalise(matrix.bfloat16()[None], coefficients("classic", 5))[0]
        assert singular(result).max() < 1.3


@pytest.mark.parametrize("periods", [(1, 1, 1, 1), (2, 2), (4,)])
def test_the_scalar_iteration_is_what_happens_to_singular_values(periods: tuple[int, ...]) -> None:
    spectrum = torch.tensor([0.9, 0.3, 0.1, 0.01, 0.001], dtype=torch.float64)
    spectrum = spectrum / spectrum.norm()
    expected = spectrum.clone()
    for a, b, c in coefficients("polar_express", 4):
        expected = a * expected + b * expected**3 + c * expected**5
    result = orthogonalise(with_spectrum(spectrum, 9)[None], coefficients("polar_express", 4), periods)
    torch.testing.assert_close(singular(result[0]), expected.sort(descending=True).values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("columns", [12, 40])
@pytest.mark.parametrize("periods", [(1,) * 40, (2,) * 20])
def test_the_cubic_iteration_converges_to_the_polar_factor(columns: int, periods: tuple[int, ...]) -> None:
    source = torch.Generator().manual_seed(2)
    matrix = torch.randn(12, columns, generator=source, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix[None].clone(), (CUBIC,) * 40, periods)[0]
    torch.testing.assert_close(result, left @ right, rtol=0, atol=1e-10)


def test_the_polar_factor_is_the_steepest_direction_of_unit_norm() -> None:
    source = torch.Generator().manual_seed(4)
    gradient = torch.randn(8, 20, generator=source, dtype=torch.float64)
    polar = orthogonalise(gradient[None].clone(), (CUBIC,) * 40)[0]
    assert (gradient * polar).sum() == pytest.approx(torch.linalg.svdvals(gradient).sum().item(), rel=1e-9)


def test_eight_polar_express_steps_reach_one() -> None:
    matrix = with_spectrum(spread(64, 0.001), 64)
    values = singular(orthogonalise(matrix[None].clone(), coefficients("polar_express", 8))[0])
    assert (values - 1).abs().max() < 1e-3


def test_five_polar_express_steps_are_closer_to_one_than_classic_ones() -> None:
    matrix = with_spectrum(spread(64, 0.003), 64)[None]
    express = singular(orthogonalise(matrix.clone(), coefficients("polar_express", 5))[0])
    classic = singular(orthogonalise(matrix.clone(), coefficients("classic", 5))[0])
    assert (express - 1).abs().max() < 0.5 * (classic - 1).abs().max()


def best_quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic nearest to 1 on [low, high], by Remez exchange: its error is equal at four points."""
    if low / high > 1 - 5e-6:
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]
    error = math.inf
    while True:
        points = [low, *inner, high]
        rows = [[x, x**3, x**5, sign] for x, sign in zip(points, (1, -1, 1, -1), strict=True)]
        previous = error
        a, b, c, error = map(float, np.linalg.solve(rows, np.ones(4)))
        if abs(previous - error) < 1e-15:
            return a, b, c
        inner = list(np.sqrt(np.sort(np.roots([5 * c, 3 * b, a]))))


def test_polar_express_coefficients_come_from_the_remez_exchange() -> None:
    """Each is the best on what the last one left, from 0.024 of the top at least, and centred around 1."""
    low, high, cushion = 1e-3, 1.0, 0.02407327424182761
    for step, safe in enumerate(coefficients("polar_express", 8)):
        margin = 1.0 if step == 7 else 1.01
        a, b, c = best_quintic(max(low, cushion * high), high)
        if cushion * high > low:
            centre = 2 / sum(a * x + b * x**3 + c * x**5 for x in (low, high))
            a, b, c = a * centre, b * centre, c * centre
        assert safe == pytest.approx((a / margin, b / margin**3, c / margin**5), rel=1e-7)
        low = a * low + b * low**3 + c * low**5
        high = 2 - low


@pytest.mark.parametrize("periods", [ONE_BY_ONE, (3, 2), (5,)])
def test_scale_and_rotations_pass_through(periods: tuple[int, ...]) -> None:
    source = torch.Generator().manual_seed(6)
    matrix = torch.randn(7, 15, generator=source, dtype=torch.float64)
    left = torch.linalg.qr(torch.randn(7, 7, generator=source, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(15, 15, generator=source, dtype=torch.float64)).Q
    steps = coefficients("classic", 5)
    plain = orthogonalise(matrix[None].clone(), steps, periods)[0]
    torch.testing.assert_close(orthogonalise(37.5 * matrix[None], steps, periods)[0], plain, rtol=1e-10, atol=1e-12)
    turned = orthogonalise((left @ matrix @ right)[None], steps, periods)[0]
    torch.testing.assert_close(turned, left @ plain @ right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("dtype", "periods"), FORMS)
def test_zero_stays_zero_and_leaves_its_neighbours_alone(dtype: torch.dtype, periods: tuple[int, ...]) -> None:
    matrix = with_spectrum(spread(16, 0.01), 40).to(dtype)
    batch = torch.stack([matrix, torch.zeros_like(matrix)])
    result = orthogonalise(batch, coefficients("classic", 5), periods)
    assert not result[1].any()
    assert torch.isfinite(result).all()
    alone = orthogonalise(matrix[None].clone(), coefficients("classic", 5), periods)[0]
    torch.testing.assert_close(result[0], alone, rtol=0.02, atol=0.005 if dtype == torch.bfloat16 else 1e-5)


def test_periods_equal_single_steps() -> None:
    for steps in (coefficients("classic", 5), coefficients("polar_express", 7)):
        assert sum(long_periods(steps)) == len(steps)
        for rows, columns in ((48, 200), (48, 48)):
            matrix = with_spectrum(spread(rows, 1e-4), columns)[None]
            single = orthogonalise(matrix.clone(), steps, (1,) * len(steps))
            through = orthogonalise(matrix.clone(), steps, long_periods(steps))
            torch.testing.assert_close(through, single, rtol=0, atol=1e-9)
            narrow = orthogonalise(matrix.float(), steps, long_periods(steps))
            torch.testing.assert_close(narrow.double(), single, rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", ["classic", "polar_express"])
@pytest.mark.parametrize("smallest", [1e-1, 1e-2, 1e-3, 1e-4])
def test_periods_are_as_exact_in_bfloat16_as_single_steps(name: CoefficientName, smallest: float) -> None:
    steps = coefficients(name, 5)
    spectrum = torch.logspace(0, math.log10(smallest), 96, dtype=torch.float64)
    matrix = with_spectrum(spectrum / spectrum.norm(), 384)[None]
    exact = orthogonalise(matrix.clone(), steps, ONE_BY_ONE)
    single, through = (
        (orthogonalise(matrix.bfloat16(), steps, periods).double() - exact).norm() / exact.norm()
        for periods in (ONE_BY_ONE, long_periods(steps))
    )
    assert through < 1.1 * single + 0.02
    assert through < 0.15


def test_five_bfloat16_steps_on_the_square_alone_explode() -> None:
    spectrum = torch.cat([torch.ones(8, dtype=torch.float64), torch.full((88,), 3e-3, dtype=torch.float64)])
    matrix = with_spectrum(spectrum / spectrum.norm(), 384).bfloat16()[None]
    steps = coefficients("classic", 5)
    assert singular(orthogonalise(matrix.clone(), steps, (5,))[0]).max() > 2
    assert singular(orthogonalise(matrix.clone(), steps)[0]).max() < 1.22


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (16, 16)])
def test_lying_down_and_standing_up_are_the_same(shape: tuple[int, int]) -> None:
    source = torch.Generator().manual_seed(8)
    matrix = torch.randn(shape, generator=source, dtype=torch.float64)
    steps = coefficients("classic", 5)
    lying, standing = (
        orthogonalise(matrix[None].clone(), steps),
        orthogonalise(matrix.mT[None].clone(), steps),
    )
    torch.testing.assert_close(lying.mT, standing, rtol=1e-9, atol=1e-10)
