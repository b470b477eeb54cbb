"""Layer normalisation against its definition, forward and backward, on each instruction level."""

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.ops.layer_norm import naive
from fairway.ops.layer_norm.native import layer_norm
from laws.levels import EVERY_LEVEL, at_level

WHOLE, HALF = torch.float32, torch.bfloat16
ERRORS = {WHOLE: 3e-6, HALF: 8e-3}
EPS = 1e-5


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "layer norm", name), dtype=torch.float64)


def twin(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().double().requires_grad_()


def leaves(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "out"), [(WHOLE, WHOLE), (WHOLE, HALF), (HALF, HALF), (HALF, WHOLE)])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("width", [5, 7, 16, 33, 192])
@pytest.mark.parametrize("learned", [(False, False), (True, False), (False, True), (True, True)])
def test_a_norm_and_all_gradients(
    width: int, rows: int, learned: tuple[bool, bool], dtype: torch.dtype, out: torch.dtype, level: str | None
) -> None:
    x = (2 * draw("x", rows, 3, width) + 1).to(dtype).requires_grad_()
    gain, bias = (
        draw(name, width).float().requires_grad_() if used else None
        for name, used in zip(("gain", "bias"), learned, strict=True)
    )
    up = draw("up", rows, 3, width).to(out)
    wide = [twin(x), twin(gain), twin(bias)]
    wanted_y = naive.layer_norm(*wide, EPS)  # pyrefly: ignore
    wanted = torch.autograd.grad(wanted_y, leaves(*wide), up.double())
    with at_level(level):
        y = layer_norm(x, gain, bias, EPS, out)
        seen = torch.autograd.grad(y, leaves(x, gain, bias), up)
    assert y.dtype == out
    assert [tensor.dtype for tensor in seen] == [dtype, *(WHOLE for _ in seen[1:])]
    error = ERRORS[HALF if HALF in (dtype, out) else WHOLE]
    for one, other in zip((y, *seen), (wanted_y, *wanted), strict=True):
        # Sums cancel: small numbers are measured by one.
        assert (one.detach().double() - other.detach()).norm() <= error * max(1.0, float(other.detach().norm()))


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_a_mean_far_from_zero_costs_no_precision_of_what_is_left(level: str | None) -> None:
    x = 1000 + torch.arange(64).view(2, 32) / 64
    with at_level(level):
        y = layer_norm(x, None, None, EPS, WHOLE)
    assert (y.double() - naive.layer_norm(x.double(), None, None, EPS)).abs().max() < 1e-3


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(bad: float, level: str | None) -> None:
    x = draw("x", 3, 4, 20).float()
    x[1, 2, 5] = bad
    with at_level(level):
        finite = layer_norm(x, None, None, EPS, WHOLE).isfinite().all(-1)
    assert not finite[1, 2]
    assert int(finite.sum()) == finite.numel() - 1


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_the_same_threads_give_the_same_bits_and_tensors_need_not_lie_in_one_piece(level: str | None) -> None:
    x = draw("x", 9, 5, 24).float().transpose(0, 1).requires_grad_()
    gain, bias = (draw(name, 24).float().requires_grad_() for name in ("gain", "bias"))

    def once(given: Tensor) -> tuple[Tensor, ...]:
        y = layer_norm(given, gain, bias, EPS, WHOLE)
        return (y, *torch.autograd.grad(y.sin().sum(), (x, gain, bias)))

    with at_level(level):
        for one, other, third in zip(once(x), once(x), once(x.contiguous()), strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, third)
