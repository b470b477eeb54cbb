"""Temperatures, top-k folding and masks of the term at every token."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.loss.targets import Targets, TokenTerm
from fairway.ops.divergence.naive import forward_kl, jensen_shannon, reverse_kl, skew_kl

EVERY = [forward_kl, reverse_kl, jensen_shannon(0.4), skew_kl(0.1), skew_kl(0.1, backward=True)]


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(6, 11, generator=generator(seed, "logits"), dtype=torch.float64)


def test_soft_targets_have_the_textbook_entropies_and_gradient() -> None:
    z = torch.tensor([[4.0, 1.0, 0.5]], dtype=torch.float64)
    for temperature, bits in ((1.0, 0.452), (2.0, 1.142), (4.0, 1.467)):
        log_p = Targets.of(z, temperature).log_p_NM
        assert float(-(log_p.exp() * log_p).sum()) / math.log(2) == pytest.approx(bits, abs=5e-4)
    a = logits(0)
    term = TokenTerm(forward_kl, 3.0, 0.25)
    _, slope = term.value_and_slope(a, Targets.of(logits(1), 3.0))
    wanted = 0.25 * 9 * ((a / 3).softmax(-1) - (logits(1) / 3).softmax(-1)) / 3
    assert torch.allclose(slope, wanted, atol=1e-12)


def test_at_high_temperature_the_gradient_matches_centred_logits() -> None:
    a, z = logits(0), logits(1)
    temperature = 1e5
    _, slope = TokenTerm(forward_kl, temperature, 1.0).value_and_slope(a, Targets.of(z, temperature))
    centred = (a - a.mean(-1, keepdim=True)) - (z - z.mean(-1, keepdim=True))
    assert torch.allclose(slope, centred / a.shape[-1], atol=1e-4)


@pytest.mark.parametrize("divergence", EVERY)
@pytest.mark.parametrize("top_k", [None, 1, 4, 10])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_slope_is_the_gradient_of_the_folded_definition(divergence, top_k: int | None, temperature: float) -> None:
    a, z = logits(0), logits(1)
    term, targets = TokenTerm(divergence, temperature, 0.7), Targets.of(z, temperature, top_k)

    def value(x: Tensor) -> Tensor:
        p = (x / temperature).softmax(-1)
        if targets.index_NK is not None:
            kept = p.gather(-1, targets.index_NK)
            p = torch.cat((kept, 1 - kept.sum(-1, keepdim=True)), -1)
        return 0.7 * temperature**2 * divergence(targets.log_p_NM, p.log())[0]

    seen, slope = term.value_and_slope(a, targets)
    assert torch.allclose(seen, value(a), atol=1e-10)
    step = 1e-6
    for place in range(a.shape[1]):
        moved = torch.zeros_like(a)
        moved[:, place] = step
        rise = (value(a + moved) - value(a - moved)) / (2 * step)
        assert torch.allclose(slope[:, place], rise, atol=1e-7)


def test_fewer_outcomes_never_show_more_divergence() -> None:
    a, z = logits(0), logits(1)
    for divergence in EVERY:
        term = TokenTerm(divergence, 1.0, 1.0)
        found = [term.value_and_slope(a, Targets.of(z, 1.0, k))[0] for k in (1, 3, 6, 10, None)]
        assert all(bool((low <= high + 1e-12).all()) for low, high in pairwise(found))


def test_the_rest_keeps_a_little_mass_where_rounding_took_it() -> None:
    log_p = torch.tensor([[0.7, 0.3000005]]).log()
    targets = Targets.of_likeliest(log_p, torch.tensor([[0, 1]]))
    assert bool(targets.log_p_NM.isfinite().all())
    assert float(targets.log_p_NM.exp().sum()) == pytest.approx(1.0, abs=1e-6)


def test_tokens_left_out_count_neither_in_the_mean_nor_in_the_gradient() -> None:
    a = logits(0).requires_grad_()
    z = logits(1)
    term = TokenTerm(reverse_kl, 1.0, 1.0)
    kept = torch.tensor([True, False, True, True, False, False])
    few = a.detach()[kept].requires_grad_()
    wanted = term.loss(few, Targets.of(z[kept], 1.0))
    poisoned = torch.where(kept[:, None], z, torch.full_like(z, float("nan")))
    seen = term.loss(a, Targets.of(poisoned, 1.0), kept)
    assert torch.allclose(seen, wanted)
    (gradient,) = torch.autograd.grad(seen, a)
    assert torch.allclose(gradient[kept], torch.autograd.grad(wanted, few)[0])
    assert not gradient[~kept].any()
    assert float(term.loss(a, Targets.of(z, 1.0), torch.zeros(6, dtype=torch.bool)).detach()) == 0.0


@pytest.mark.parametrize("divergence", EVERY)
def test_a_rest_too_faint_for_numbers_still_has_a_slope(divergence) -> None:
    a, z = logits(0), logits(1)
    term, targets = TokenTerm(divergence, 1.0, 1.0), Targets.of(z, 1.0, 3)
    assert targets.index_NK is not None
    far = a.scatter(-1, targets.index_NK, 900.0)
    value, slope = term.value_and_slope(far, targets)
    assert bool(value.isfinite().all() and slope.isfinite().all())
    if divergence is forward_kl:
        # The rest should have mass and has none, so all of it pulls on the rest's tokens.
        rest = targets.log_p_NM[:, -1].exp()
        assert torch.allclose(slope.scatter(-1, targets.index_NK, 0.0).sum(-1), -rest, rtol=1e-9)
