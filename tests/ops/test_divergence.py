"""Each divergence against its definition by autograd, figures by hand, and what tells them apart."""

import math

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.ops.divergence.naive import Divergence, by_logits, forward_kl, jensen_shannon, reverse_kl, skew_kl


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(-1)


def js(beta: float, t: Tensor, s: Tensor) -> Tensor:
    m = beta * t + (1 - beta) * s
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


DEFINED = {
    "forward": (forward_kl, lambda t, s: kl(t, s)),
    "reverse": (reverse_kl, lambda t, s: kl(s, t)),
    "js 0.1": (jensen_shannon(0.1), lambda t, s: js(0.1, t, s)),
    "js 0.7": (jensen_shannon(0.7), lambda t, s: js(0.7, t, s)),
    "skew": (skew_kl(0.2), lambda t, s: kl(t, 0.2 * t + 0.8 * s)),
    "skew backward": (skew_kl(0.3, backward=True), lambda t, s: kl(s, 0.3 * s + 0.7 * t)),
}


def logits(seed: int, outcomes: int = 7) -> Tensor:
    return 2 * torch.randn(5, outcomes, generator=generator(seed, "logits"), dtype=torch.float64)


@pytest.mark.parametrize("name", DEFINED)
def test_value_and_slope_are_those_of_the_definition(name: str) -> None:
    divergence, definition = DEFINED[name]
    a, z = logits(0).requires_grad_(), logits(1)
    wanted = definition(z.softmax(-1), a.softmax(-1))
    (gradient,) = torch.autograd.grad(wanted.sum(), a)
    log_s = a.detach().log_softmax(-1)
    value, g = divergence(z.log_softmax(-1), log_s)
    assert torch.allclose(value, wanted, atol=1e-12)
    assert torch.allclose(by_logits(g, log_s), gradient, atol=1e-12)


@pytest.mark.parametrize("name", DEFINED)
def test_it_is_zero_without_slope_where_both_agree_and_positive_elsewhere(name: str) -> None:
    divergence, _ = DEFINED[name]
    log_t = logits(0).log_softmax(-1)
    value, g = divergence(log_t, log_t)
    assert value.abs().max() < 1e-12
    assert by_logits(g, log_t).abs().max() < 1e-12
    assert bool((divergence(log_t, logits(1).log_softmax(-1))[0] > 0).all())


def test_the_ends_of_jensen_shannon_are_the_plain_divergences() -> None:
    log_t, log_s = logits(0).log_softmax(-1), logits(1).log_softmax(-1)
    forward, reverse = forward_kl(log_t, log_s)[0], reverse_kl(log_t, log_s)[0]
    assert torch.equal(jensen_shannon(0.0)(log_t, log_s)[0], forward)
    assert torch.equal(jensen_shannon(1.0)(log_t, log_s)[0], reverse)
    small = 1e-6
    assert torch.allclose(jensen_shannon(small)(log_t, log_s)[0] / small, forward, rtol=1e-4)
    assert torch.allclose(jensen_shannon(1 - small)(log_t, log_s)[0] / small, reverse, rtol=1e-4)


def test_jensen_shannon_of_two_coins_is_the_figure_by_hand() -> None:
    log_t, log_s = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[1.0, 0.0]]).double().log()
    wanted = 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) + 0.5 * math.log(1 / 0.75)
    value, g = jensen_shannon(0.5)(log_t, log_s)
    assert float(value) == pytest.approx(wanted, abs=1e-14)
    assert bool(g.isfinite().all())


TRL = {
    0.0: (1.4444014883143244, 0.3848865635120897),
    0.1: (0.12434034662930224, 0.03441370262249837),
    0.5: (0.3234368581919268, 0.0951989984771038),
    0.9: (0.12319478253646295, 0.035364572706974504),
    1.0: (1.4290465437791302, 0.39882198288046056),
}
"""Sums over two tokens that `generalized_jsd_loss` of trl 1.16.0 gives at temperatures 1 and 2."""


@pytest.mark.parametrize("beta", TRL)
def test_jensen_shannon_has_the_values_of_trl(beta: float) -> None:
    student = torch.tensor([[0.2, -1.0, 0.7, 1.5], [2.0, 0.0, -0.5, 0.3]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.5, -0.3, 0.8], [-0.2, 0.9, 1.1, 0.0]], dtype=torch.float64)
    for temperature, wanted in zip((1.0, 2.0), TRL[beta], strict=True):
        log_t, log_s = ((logits / temperature).log_softmax(-1) for logits in (teacher, student))
        assert float(jensen_shannon(beta)(log_t, log_s)[0].sum()) == pytest.approx(wanted, abs=1e-14)


@pytest.mark.parametrize("divergence", [forward_kl, jensen_shannon(0.3), skew_kl(0.2)])
def test_outcomes_that_the_teacher_never_gives_count_nothing_and_break_nothing(divergence: Divergence) -> None:
    log_t = torch.tensor([[0.25, 0.75, 0.0]]).double().log()
    log_s = torch.tensor([[0.5, 0.3, 0.2]]).double().log()
    value, g = divergence(log_t, log_s)
    assert bool(value.isfinite().all())
    assert bool(by_logits(g, log_s).isfinite().all())


def fitted(divergence: Divergence) -> tuple[float, float]:
    """Mean and deviation of the Gaussian nearest to a mixture of two, by descent on a grid."""
    x = torch.linspace(-16, 16, 1281, dtype=torch.float64)
    teacher = (-0.5 * ((x - 3) / 0.7).square()).exp() + 0.9 * (-0.5 * ((x + 3) / 0.7).square()).exp()
    log_t = (teacher / teacher.sum()).log()[None]
    mean, log_width = torch.tensor(0.5).double().requires_grad_(), torch.tensor(0.0).double().requires_grad_()
    optimizer = torch.optim.Adam([mean, log_width], lr=0.05)
    for _ in range(600):
        a = (-0.5 * ((x - mean) / log_width.exp()).square())[None]
        log_s = a.detach().log_softmax(-1)
        slope = by_logits(divergence(log_t, log_s)[1], log_s)
        optimizer.zero_grad()
        (a * slope).sum().backward()
        optimizer.step()
    return float(mean.detach()), float(log_width.detach().exp())


def test_forward_covers_both_modes_and_reverse_seeks_one() -> None:
    mean, width = fitted(forward_kl)
    share = 1 / 1.9
    centre = 3 * share - 3 * (1 - share)
    assert mean == pytest.approx(centre, abs=0.02)
    assert width == pytest.approx(math.sqrt(0.49 + 9 - centre**2), abs=0.02)
    mean, width = fitted(reverse_kl)
    assert mean == pytest.approx(3.0, abs=0.05)
    assert width == pytest.approx(0.7, abs=0.05)
