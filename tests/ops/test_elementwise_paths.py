"""The fused elementwise kernels against their definitions, on each instruction level."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.seed import generator
from fairway.ops.cross_entropy import naive as cross_entropy_naive
from fairway.ops.cross_entropy.native import cross_entropy_, fold, widen_
from fairway.ops.relu2 import naive as relu2_naive
from fairway.ops.relu2.native import relu2
from fairway.ops.rms_norm import naive as rms_naive
from fairway.ops.rms_norm.native import rms_norm
from fairway.ops.rotate import naive as rotate_naive
from fairway.ops.rotate.native import rotate
from laws.levels import EVERY_LEVEL, at_level

DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)]


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


def relative(seen: Tensor, wanted: Tensor) -> float:
    return float((seen.detach().double() - wanted.detach()).norm() / wanted.detach().norm().clamp_min(1e-12))


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
@pytest.mark.parametrize("width", [1, 7, 16, 33, 192])
@pytest.mark.parametrize("gained", [False, True])
def test_rms_norm_and_its_gradients(
    width: int, gained: bool, dtype: torch.dtype, error: float, level: str | None
) -> None:
    x = (3 * draw("x", 5, 3, width)).to(dtype).requires_grad_()
    gain = draw("gain", width).float().requires_grad_() if gained else None
    up = draw("up", 5, 3, width).to(dtype)
    wide, wide_gain = (
        x.detach().double().requires_grad_(),
        None if gain is None else gain.detach().double().requires_grad_(),
    )
    wanted_y = rms_naive.rms_norm(wide, wide_gain, 1e-6)
    wanted = torch.autograd.grad(wanted_y, [t for t in (wide, wide_gain) if t is not None], up.double())
    with at_level(level):
        y = rms_norm(x, gain, 1e-6, dtype)
        seen = torch.autograd.grad(y, [t for t in (x, gain) if t is not None], up)
    assert relative(y, wanted_y) < error
    # The gradient along x itself cancels, so its error is measured against the upstream gradient's size.
    scale = up.double().norm() / wide.norm() * math.sqrt(wide.numel())
    assert (seen[0].double() - wanted[0]).norm() < 4 * error * scale
    if gained:
        assert relative(seen[1], wanted[1]) < error


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_rms_norm_reads_floats_and_writes_halves(level: str | None) -> None:
    x = draw("x", 4, 40).float().requires_grad_()
    with at_level(level):
        y = rms_norm(x, None, 1e-6, torch.bfloat16)
        y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert relative(y, rms_naive.rms_norm(x.detach().double(), None, 1e-6)) < 6e-3


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
@pytest.mark.parametrize("count", [0, 1, 15, 16, 1003])
def test_relu2_and_its_gradient(count: int, dtype: torch.dtype, error: float, level: str | None) -> None:
    x, up = draw("x", count).to(dtype).requires_grad_(), draw("up", count).to(dtype)
    wide = x.detach().double().requires_grad_()
    wanted_y = relu2_naive.relu2(wide)
    (wanted,) = torch.autograd.grad(wanted_y, wide, up.double())
    with at_level(level):
        y = relu2(x)
        (seen,) = torch.autograd.grad(y, x, up)
    assert relative(y, wanted_y) < error
    assert relative(seen, wanted) < error


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
@pytest.mark.parametrize(("width", "pairs"), [(2, 1), (16, 3), (32, 16), (66, 33), (80, 32)])
@pytest.mark.parametrize("positions", [(9,), (2, 9)])
def test_rotation_and_its_gradient(
    positions: tuple[int, ...], width: int, pairs: int, dtype: torch.dtype, error: float, level: str | None
) -> None:
    x, up = (draw(name, 2, 9, 3, width).to(dtype) for name in ("x", "up"))
    x.requires_grad_()
    angle = draw("angle", *positions, pairs)
    wide = x.detach().double().requires_grad_()
    wanted_y = rotate_naive.rotate(wide, angle.cos(), angle.sin())
    (wanted,) = torch.autograd.grad(wanted_y, wide, up.double())
    with at_level(level):
        y = rotate(x, angle.cos().float(), angle.sin().float())
        (seen,) = torch.autograd.grad(y, x, up)
    assert relative(y, wanted_y) < error
    assert relative(seen, wanted) < error


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("vocabulary", [2, 17, 300])
def test_cross_entropy_and_its_gradient(
    vocabulary: int, cap: float | None, dtype: torch.dtype, error: float, level: str | None
) -> None:
    z = (4 * draw("z", 11, vocabulary)).to(dtype)
    target = torch.randint(0, vocabulary, (11,), generator=generator(0, "target"))
    wanted = cross_entropy_naive.cross_entropy(z.double(), target, cap, 1e-3, 0.3)
    with at_level(level):
        seen = cross_entropy_(z.clone(), target, cap, 1e-3, 0.3)
    assert all(relative(a, b) < error for a, b in zip(seen, wanted, strict=True))


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize(("vocabulary", "few"), [(2, 1), (17, 16), (33, 16), (300, 20)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_fold_and_the_pull_that_comes_of_it(
    vocabulary: int,
    few: int,
    temperature: float,
    cap: float | None,
    dtype: torch.dtype,
    error: float,
    level: str | None,
) -> None:
    z = (4 * draw("z", 11, vocabulary)).to(dtype)
    z[0, 0] = 90.0  # the others' mass is no number beside it, or it is all there is
    index = torch.rand(11, vocabulary, generator=generator(0, "index")).argsort(-1)[:, :few].contiguous()
    index[0] = torch.arange(few)
    target = torch.randint(0, vocabulary, (11,), generator=generator(0, "target"))
    share, slope = draw("share", 11), draw("slope", 11, few)
    log_p, others = cross_entropy_naive.fold(z.double(), index, cap, temperature)
    pull = cross_entropy_naive.Pull(index, others, share, slope, temperature, 0.4)
    wanted = cross_entropy_naive.cross_entropy(z.double(), target, cap, 1e-3, 0.3, pull)
    with at_level(level):
        folded = fold(z, index, cap, temperature)
        mine = cross_entropy_naive.Pull(index, folded[1], share.float(), slope.float(), temperature, 0.4)
        seen = cross_entropy_(z.clone(), target, cap, 1e-3, 0.3, mine)
    assert all(relative(a, b) < 2e-6 for a, b in zip(folded, (log_p, others), strict=True))
    assert all(relative(a, b) < error for a, b in zip(seen, wanted, strict=True))


def test_the_definitions_of_fold_and_pull_are_a_gradient() -> None:
    z, index = draw("z", 6, 9).requires_grad_(), torch.tensor([[0, 3]] * 6)
    target, weights = torch.arange(6), draw("weights", 6, 3)
    capped = 4 * torch.tanh(z / 4)
    p = (capped / 1.5).softmax(-1)
    kept = p.gather(-1, index)
    log_p = torch.cat((kept, 1 - kept.sum(-1, keepdim=True)), -1).log()
    found, others = cross_entropy_naive.fold(z.detach(), index, 4.0, 1.5)
    assert torch.allclose(found, log_p.detach(), atol=1e-12)
    (wanted,) = torch.autograd.grad((log_p * weights).sum(), z)
    slope = (weights - log_p.detach().exp() * weights.sum(-1, keepdim=True)) / 1.5
    pull = cross_entropy_naive.Pull(index, others, slope[:, -1], slope[:, :-1], 1.5)
    _, _, seen = cross_entropy_naive.cross_entropy(z.detach(), target, 4.0, 0.0, 0.0, pull)
    assert torch.allclose(seen, wanted, atol=1e-12)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("count", [0, 1, 15, 16, 40_001])
def test_halves_are_written_and_added_into_floats(count: int, level: str | None) -> None:
    sums, parts = draw("sums", count).float(), draw("parts", count).bfloat16()
    written, added = sums.clone(), sums.clone()
    with at_level(level):
        widen_(written, parts, add=False)
        widen_(added, parts, add=True)
    assert torch.equal(written, parts.float())
    assert torch.equal(added, sums + parts.float())


def test_the_definition_of_cross_entropy_is_that_of_torch() -> None:
    z, target = draw("z", 6, 9).requires_grad_(), torch.arange(6)
    nats, normaliser, slope = cross_entropy_naive.cross_entropy(z.detach(), target, 4.0, 0.01, 0.5)
    capped = 4 * torch.tanh(z / 4)
    loss = functional.cross_entropy(capped, target, reduction="none") + 0.01 * capped.logsumexp(-1).square()
    (wanted,) = torch.autograd.grad(0.5 * loss.sum(), z)
    assert torch.allclose(nats + 0.01 * normaliser.square(), loss.detach(), atol=1e-12)
    assert torch.allclose(slope, wanted, atol=1e-12)


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_what_is_not_finite_stays_visible(level: str | None) -> None:
    with at_level(level):
        for bad in (float("nan"), float("inf")):
            x = torch.ones(3, 20)
            x[1, 4] = bad
            assert not rms_norm(x, None, 1e-6, torch.float32)[1].isfinite().all()
            assert rms_norm(x, None, 1e-6, torch.float32)[0].isfinite().all()
            assert not relu2(x)[1, 4].isfinite()
            nats, _, slope = cross_entropy_(x.clone(), torch.zeros(3, dtype=torch.int64), 30.0, 0.0, 1.0)
            assert nats[0].isfinite()
            assert slope[0].isfinite().all()
            assert bad == float("inf") or nats[1].isnan()
