"""Norms fused with what stands beside them, against their definitions, on each instruction level."""

import math

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.ops.add_rms_norm import naive as add_naive
from fairway.ops.add_rms_norm.native import add_rms_norm
from fairway.ops.norm_rotate import naive as turn_naive
from fairway.ops.norm_rotate.native import norm_rotate
from laws.levels import EVERY_LEVEL, at_level

WHOLE, HALF = torch.float32, torch.bfloat16
ERRORS = {WHOLE: 2e-6, HALF: 8e-3}
MIXES = [(WHOLE, WHOLE, WHOLE), (WHOLE, HALF, HALF), (WHOLE, HALF, WHOLE), (WHOLE, WHOLE, HALF), (HALF, HALF, HALF)]
"""Dtypes of the stream, the branch and the norm."""


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


def relative(seen: Tensor, wanted: Tensor) -> float:
    assert seen.shape == wanted.shape
    return float((seen.detach().double() - wanted.detach()).norm() / wanted.detach().norm().clamp_min(1e-12))


def leaves(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def twin(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().double().requires_grad_()


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("width", [7, 16, 33, 192])
@pytest.mark.parametrize("gained", [False, True])
def test_a_sum_its_norm_and_all_gradients(
    width: int, rows: int, gained: bool, mix: tuple[torch.dtype, ...], level: str | None
) -> None:
    stream, other, out = mix
    x = (2 * draw("x", rows, 3, width)).to(stream).requires_grad_()
    branch = draw("branch", rows, 3, width).to(other).requires_grad_()
    gain = draw("gain", width).float().requires_grad_() if gained else None
    ups = [draw("total", rows, 3, width).to(stream), draw("normed", rows, 3, width).to(out)]
    wide = [twin(x), twin(branch), twin(gain)]
    wanted_both = add_naive.add_rms_norm(*wide, 1e-6)  # pyrefly: ignore
    wanted = torch.autograd.grad(wanted_both, leaves(*wide), [up.double() for up in ups])
    with at_level(level):
        both = add_rms_norm(x, branch, gain, 1e-6, out)
        seen = torch.autograd.grad(both, leaves(x, branch, gain), ups)
    assert [tensor.dtype for tensor in both] == [stream, out]
    assert [tensor.dtype for tensor in seen[:2]] == [stream, other]
    worst = ERRORS[HALF if HALF in mix else WHOLE]
    assert relative(both[0], wanted_both[0]) < ERRORS[stream]
    assert relative(both[1], wanted_both[1]) < worst
    assert all(relative(a, b) < worst for a, b in zip(seen, wanted, strict=True))


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("learned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("width", "pairs"), [(2, 1), (7, 2), (16, 3), (32, 16), (66, 33), (80, 20)])
@pytest.mark.parametrize(("batch", "time", "heads"), [(2, 9, 3), (1, 1, 1), (2, 0, 3)])
def test_heads_normalised_and_turned_and_all_gradients(
    batch: int, time: int, heads: int, width: int, pairs: int, learned: tuple[bool, bool], dtype: torch.dtype,
    level: str | None,
) -> None:  # fmt: skip
    x = (2 * draw("x", batch, time, heads, width)).to(dtype).requires_grad_()
    gain = draw("gain", width).float().requires_grad_() if learned[0] else None
    factor = draw("factor", heads).float().requires_grad_() if learned[1] else None
    up, angle = draw("up", batch, time, heads, width).to(dtype), draw("angle", time, pairs)
    wide = [twin(x), twin(gain), twin(factor)]
    # Longer than one, as YaRN's are.
    cos, sin = 1.1 * angle.cos(), 1.1 * angle.sin()
    wanted_y = turn_naive.norm_rotate(*wide, cos, sin, 1e-6)  # pyrefly: ignore
    wanted = torch.autograd.grad(wanted_y, leaves(*wide), up.double())
    with at_level(level):
        y = norm_rotate(x, gain, factor, cos.float(), sin.float(), 1e-6, dtype)
        seen = torch.autograd.grad(y, leaves(x, gain, factor), up)
    assert y.dtype == seen[0].dtype == dtype
    # Without kernels, bfloat16 is rounded between the three steps.
    error = ERRORS[dtype] * (1 if level else 2)
    assert relative(y, wanted_y) < error
    # Sums cancel, so the error of a gradient is measured against what was summed.
    size = float(up.double().norm())
    scale = size * math.sqrt(x.numel()) / max(1e-12, float(x.detach().double().norm()))
    assert (seen[0].double() - wanted[0]).norm() <= 8 * error * scale
    for one, other in zip(seen[1:], wanted[1:], strict=True):
        assert (one.double() - other).norm() <= 4 * error * (size + other.norm())


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible_and_where_it_is(bad: float, level: str | None) -> None:
    x = torch.ones(2, 3, 4, 16)
    x[1, 2, 3, 5] = bad
    angle = torch.zeros(3, 8)
    with at_level(level):
        y = norm_rotate(x, None, None, angle.cos(), angle.sin(), 1e-6, WHOLE)
        total, normed = add_rms_norm(x, torch.ones_like(x), None, 1e-6, WHOLE)
    for seen in (y, normed):
        finite = seen.isfinite().all(-1)
        assert not finite[1, 2, 3]
        assert int(finite.sum()) == finite.numel() - 1
    assert int(total.isfinite().sum()) == total.numel() - 1


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_numbers_too_small_for_a_normal_float_keep_their_direction(level: str | None) -> None:
    x = torch.full((1, 1, 1, 16), 1e-41).requires_grad_()
    with at_level(level):
        y = norm_rotate(x, None, None, torch.ones(1, 8), torch.zeros(1, 8), 1e-6, WHOLE)
        total, normed = add_rms_norm(x, torch.zeros_like(x), None, 1e-6, WHOLE)
    assert torch.equal(total, x)
    for seen in (y, normed):
        torch.testing.assert_close(seen, x * 1e3, rtol=1e-2, atol=0)


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_tensors_need_not_lie_in_one_piece(level: str | None) -> None:
    x, branch = (draw(name, 3, 5, 4, 12).float().transpose(1, 2) for name in ("x", "branch"))
    angle = draw("angle", 4, 6).float()
    with at_level(level):
        seen = norm_rotate(x, None, None, angle.cos(), angle.sin(), 1e-6, WHOLE)
        assert torch.equal(seen, norm_rotate(x.contiguous(), None, None, angle.cos(), angle.sin(), 1e-6, WHOLE))
        for one, other in zip(
            add_rms_norm(x, branch, None, 1e-6, WHOLE),
            add_rms_norm(x.contiguous(), branch.contiguous(), None, 1e-6, WHOLE),
            strict=True,
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_the_same_threads_give_the_same_bits(level: str | None) -> None:
    x, branch = (draw(name, 2, 37, 5, 24).float().requires_grad_() for name in ("x", "branch"))
    gain, factor = draw("gain", 24).float().requires_grad_(), draw("factor", 5).float().requires_grad_()
    angle = draw("angle", 37, 12).float()

    def once() -> list[Tensor]:
        y = norm_rotate(x, gain, factor, angle.cos(), angle.sin(), 1e-6, WHOLE)
        total, normed = add_rms_norm(x, branch, gain, 1e-6, WHOLE)
        loss = (y.sin() + total.sin() + normed.cos()).sum()
        return [y, total, normed, *torch.autograd.grad(loss, (x, branch, gain, factor))]

    with at_level(level):
        assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))
