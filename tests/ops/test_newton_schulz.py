"""Newton-Schulz by the native kernel against its definition, on each instruction level."""

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.ops.newton_schulz import naive
from fairway.ops.newton_schulz.native import FASTER_AT, iterate, served
from laws.levels import EVERY_LEVEL, at_level

SHAPES = [(1, 1, 1), (2, 1, 5), (1, 2, 3), (2, 9, 5), (3, 16, 32), (1, 33, 70), (2, 70, 33), (1, 48, 96), (1, 65, 65)]
STEPS = ((3.4445, -4.7750, 2.0315),) * 2 + ((1.5, -0.5, 0.0),)


def drawn(*shape: int) -> Tensor:
    """Matrices of Frobenius norm 1, float64."""
    x = torch.randn(shape, generator=generator(0, "matrices", str(shape)), dtype=torch.float64)
    return x / torch.linalg.matrix_norm(x, keepdim=True)


def relative(seen: Tensor, wanted: Tensor) -> float:
    return float((seen.double() - wanted).norm() / wanted.norm())


@pytest.fixture(params=EVERY_LEVEL)
def level(request: pytest.FixtureRequest) -> str:
    if request.param is None:
        pytest.skip("the kernels are switched off")
    return request.param


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("periods", [(1, 1, 1), (2, 1), (3,)])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_level_gives_what_the_definition_does(
    shape: tuple[int, int, int], periods: tuple[int, ...], dtype: torch.dtype, error: float, level: str
) -> None:
    x = drawn(*shape).to(dtype)
    wanted = naive.iterate(x.double(), STEPS)
    with at_level(level):
        seen = iterate(x, STEPS, periods)
    assert seen is x
    assert relative(seen, wanted) < error


@pytest.mark.parametrize("shape", [(5, 33, 50), (3, 50, 33)])
def test_threads_and_neighbours_change_no_bit(shape: tuple[int, int, int], level: str) -> None:
    """Matrices in a batch, alone, and shared by threads that outnumber them, are the same."""
    x, before = drawn(*shape).bfloat16(), torch.get_num_threads()
    with at_level(level):
        try:
            torch.set_num_threads(1)
            wanted = iterate(x.clone(), STEPS, (2, 1))
            alone = torch.cat([iterate(one[None].clone(), STEPS, (2, 1)) for one in x])
            torch.set_num_threads(4)
            shared = torch.cat([iterate(one[None].clone(), STEPS, (2, 1)) for one in x])
            dealt = iterate(x.clone(), STEPS, (2, 1))
        finally:
            torch.set_num_threads(before)
    for seen in (alone, shared, dealt):
        assert torch.equal(seen, wanted)


def test_what_is_not_finite_stays_in_its_matrix(level: str) -> None:
    x = drawn(3, 20, 40).bfloat16()
    x[1, 3, 7] = torch.nan
    with at_level(level):
        seen = iterate(x.clone(), STEPS, (2, 1))
        rest = iterate(x[[0, 2]].clone(), STEPS, (2, 1))
    assert seen[1].isnan().all()
    assert torch.equal(seen[[0, 2]], rest)


def test_only_contiguous_bfloat16_goes_to_the_kernel() -> None:
    x = drawn(2, 20, 40).bfloat16()
    for name in EVERY_LEVEL:
        if name is not None:
            with at_level(name):
                assert served(x) == (name in FASTER_AT)
                assert not served(x.mT)
                assert not served(x.float())
