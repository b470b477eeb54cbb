"""Half-precision storage: what to-nearest loses, what stochastic rounding and Kahan summation keep."""

import pytest
import torch

from fairway.core.seed import generator
from fairway.optim.rounding import Kahan, Nearest, Rounding, Stochastic, stochastic_bfloat16


def thousand_small_steps(rounding: Rounding) -> float:
    stored = torch.ones(512, dtype=torch.bfloat16)
    for _ in range(1000):
        wide = rounding.widen("w", stored)
        rounding.store("w", stored, wide - 1e-3)
        rounding.advance()
    return rounding.widen("w", stored).mean().item()


def test_to_nearest_loses_every_small_step() -> None:
    assert thousand_small_steps(Nearest()) == 1.0


def test_stochastic_rounding_keeps_small_steps_on_average() -> None:
    assert thousand_small_steps(Stochastic(seed=1)) == pytest.approx(0.0, abs=0.01)


def test_kahan_summation_keeps_small_steps_exactly_enough() -> None:
    rounding = Kahan({"w": torch.ones(512, dtype=torch.bfloat16)})
    assert thousand_small_steps(rounding) == pytest.approx(0.0, abs=0.01)


def test_stochastic_rounding_hits_only_the_two_neighbours_with_the_right_frequency() -> None:
    value = torch.full((200_000,), 1.0 + 0.3 * 2**-7)
    rounded = stochastic_bfloat16(value, generator(0)).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert (rounded > 1).float().mean().item() == pytest.approx(0.3, abs=0.005)


def test_stochastic_rounding_is_unbiased_for_negative_values_and_keeps_exact_ones() -> None:
    value = -(torch.rand(1000, generator=generator(3)) + 0.5)
    mean = torch.stack([stochastic_bfloat16(value, generator(4, i)).float() for i in range(400)]).mean(0)
    torch.testing.assert_close(mean, value, rtol=0, atol=1.5e-3)
    exact = torch.randn(1000, generator=generator(5)).bfloat16()
    assert torch.equal(stochastic_bfloat16(exact.float(), generator(6)), exact)


def test_stochastic_rounding_never_makes_a_finite_value_infinite() -> None:
    largest = torch.finfo(torch.bfloat16).max
    value = torch.full((10_000,), largest)
    assert torch.isfinite(stochastic_bfloat16(value, generator(7))).all()
    odd = torch.tensor([float("inf"), -float("inf"), float("nan")])
    rounded = stochastic_bfloat16(odd, generator(8))
    assert rounded[0] == float("inf")
    assert rounded[1] == -float("inf")
    assert rounded[2].isnan()


def test_draws_depend_on_the_step_and_resume_with_it() -> None:
    first, second = Stochastic(seed=2), Stochastic(seed=2)
    wide = torch.rand(1000, generator=generator(9))
    stored = [torch.zeros(1000, dtype=torch.bfloat16) for _ in range(3)]
    first.store("w", stored[0], wide)
    first.advance()
    first.store("w", stored[1], wide)
    assert not torch.equal(stored[0], stored[1])
    second.state()["step"].copy_(first.state()["step"])
    second.store("w", stored[2], wide)
    assert torch.equal(stored[1], stored[2])
