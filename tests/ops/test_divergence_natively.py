"""The divergence kernel against its definition, and the definition against autograd, on each instruction level."""

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.ops.divergence import naive
from fairway.ops.divergence.naive import Divergence, Softening, forward_kl, jensen_shannon, reverse_kl, skew_kl
from fairway.ops.divergence.native import divergence_
from laws.levels import EVERY_LEVEL, at_level

EVERY = [forward_kl, reverse_kl, jensen_shannon(0.3), skew_kl(0.1), skew_kl(0.2, backward=True)]
SOFT = [Softening(), Softening(2.5, 5.0, None), Softening(0.7, None, 8.0), Softening(1.0, 30.0, 30.0)]


def draw(name: str, *shape: int) -> Tensor:
    return 4 * torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


def relative(seen: Tensor, wanted: Tensor) -> float:
    return float((seen.double() - wanted).norm() / wanted.norm().clamp_min(1e-12))


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("soft", SOFT)
def test_the_slope_is_the_gradient_by_logits_before_the_cap(kind: Divergence, soft: Softening) -> None:
    z, taught = draw("student", 5, 9).requires_grad_(), draw("teacher", 5, 9)

    def value(logits: Tensor) -> Tensor:
        return naive.divergence(logits, taught, kind, soft, 0.7)[0].detach()

    _, slope = naive.divergence(z.detach(), taught, kind, soft, 0.7)
    for place in range(9):
        moved = torch.zeros_like(taught)
        moved[:, place] = 1e-6
        rise = (value(z.detach() + moved) - value(z.detach() - moved)) / 2e-6
        assert torch.allclose(slope[:, place], rise, atol=1e-7)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("soft", SOFT)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.bfloat16, 6e-3)])
def test_values_and_slopes_are_those_of_the_definition(
    kind: Divergence, soft: Softening, dtype: torch.dtype, error: float, level: str | None
) -> None:
    for rows, width in ((0, 5), (1, 1), (4, 2), (3, 16), (5, 37), (7, 300)):
        z, taught = draw("student", rows, width).to(dtype), draw("teacher", rows, width).to(dtype)
        wanted = naive.divergence(z.double(), taught.double(), kind, soft, 0.7)
        with at_level(level):
            seen = divergence_(z.clone(), taught.clone(), kind, soft, 0.7)
        assert seen[1].shape == (rows, width)
        if width > 1:
            assert all(relative(a, b) < error for a, b in zip(seen, wanted, strict=True))
        else:
            assert all(float(a.abs().sum()) < 2e-6 for a in seen)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("kind", EVERY)
def test_sides_of_two_formats_and_views_are_served_too(kind: Divergence, level: str | None) -> None:
    z, taught = draw("student", 9, 6), draw("teacher", 9, 6)
    for student, teacher in ((z, taught), (z.bfloat16(), taught.float()), (z.float().T, taught.float().T)):
        wanted = naive.divergence(student.double(), teacher.double(), kind, SOFT[3], 0.7)
        with at_level(level):
            seen = divergence_(student.clone(), teacher.clone(), kind, SOFT[3], 0.7)
        assert all(relative(a, b) < 5e-6 for a, b in zip(seen, wanted, strict=True))


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("kind", EVERY)
def test_a_token_that_one_side_never_gives_counts_as_in_the_definition(kind: Divergence, level: str | None) -> None:
    z, taught = draw("student", 3, 37), draw("teacher", 3, 37)
    taught[0, 5] = -float("inf") if kind != reverse_kl else taught[0, 5]
    z[1, 36], taught[1, 36] = -300.0, -300.0
    wanted = naive.divergence(z, taught, kind, Softening(), 1.0)
    with at_level(level):
        seen = divergence_(z.float(), taught.float(), kind, Softening(), 1.0)
    assert bool(wanted[0].isfinite().all())
    assert all(relative(a, b) < 5e-6 for a, b in zip(seen, wanted, strict=True))


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("kind", EVERY)
def test_nan_takes_its_row_and_no_other(kind: Divergence, level: str | None) -> None:
    for side in (0, 1):
        z, taught = draw("student", 3, 37).float(), draw("teacher", 3, 37).float()
        (z, taught)[side][1, 36] = float("nan")
        with at_level(level):
            value, slope = divergence_(z, taught, kind, SOFT[3], 1.0)
        assert value.isnan().tolist() == [False, True, False]
        assert slope[[0, 2]].isfinite().all()
        assert slope[1].isnan().any()
