"""Test-time training layers against their definition: one sequence, one token, one gradient after another."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.model.mixer.ttt import Config
from fairway.model.parts import initialise


def turned(x: Tensor, place: int) -> Tensor:
    """One head's q or k rotated by its place."""
    half = len(x) // 2
    turn = place * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    both = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(turn), turn)
    return torch.cat((both.real, both.imag))


def inner(weights: list[Tensor], x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    z = x @ weights[0] + weights[1][0]
    if len(weights) == 4:
        z = functional.gelu(z, approximate="tanh") @ weights[2] + weights[3][0]
    return x + functional.layer_norm(z, z.shape, gain, shift, 1e-6)


def by_definition(mixer: Any, x_TD: Tensor, base_rate: float, batch: int) -> Tensor:
    """Outputs before the projection, (T, D)."""
    first = [mixer.inner_HKF, mixer.inner_bias_H1F, mixer.second_HFK, mixer.second_bias_H1K]
    heads = []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        affine = mixer.inner_gain_HK[head], mixer.inner_shift_HK[head]
        start = [weight[head] for weight in first if weight is not None]
        sums, rows = [torch.zeros_like(weight) for weight in start], []
        for t, x in enumerate(x_TD):
            place = t % batch
            q, k, v = (part_.weight[part] @ x for part_ in (mixer.query, mixer.key, mixer.value))
            rate = base_rate * (mixer.rate_HD[head] @ x + mixer.rate_bias_H[head]).sigmoid() / 8
            with torch.enable_grad():
                leaves = [weight.detach().requires_grad_() for weight in start]
                loss = 0.5 * (inner(leaves, turned(k, place), *affine) - v).square().sum()
                gradients = torch.autograd.grad(loss, leaves)
            sums = [old + rate * new for old, new in zip(sums, gradients, strict=True)]
            token_rate = max(0.0, 1 / (place + 1) + float(mixer.token_rate_M[place]))
            now = [weight - token_rate * total for weight, total in zip(start, sums, strict=True)]
            rows.append(inner(now, turned(q, place), *affine))
            if place == batch - 1:
                start, sums = now, [torch.zeros_like(weight) for weight in start]
        heads.append(torch.stack(rows))
    return torch.cat(heads, 1)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "base_rate"), [("ttt_linear", 1.0), ("ttt_mlp", 0.1)])
def test_outputs_are_those_of_one_gradient_per_token(moved: Any, x_TD: Tensor, kind: str, base_rate: float) -> None:
    mixer = moved(Config.read({"kind": kind, "heads": 2, "mini_batch": 8}))
    expected = by_definition(mixer, x_TD, base_rate, 8)
    expected = functional.layer_norm(expected, (16,), mixer.gain_D, mixer.shift_D, 1e-6) @ mixer.output.weight.T
    torch.testing.assert_close(mixer(x_TD[None])[0][0], expected, rtol=1e-9, atol=1e-9)


def test_initial_values_are_the_published_ones() -> None:
    mixer: Any = Config.read({"kind": "ttt_mlp"}).build(256)
    initialise(mixer, 0)
    for weight in (mixer.inner_HKF, mixer.second_HFK, mixer.rate_HD):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    for bias in (mixer.inner_bias_H1F, mixer.second_bias_H1K, mixer.rate_bias_H, mixer.token_rate_M):
        assert not bias.any()


def test_the_sums_are_empty_again_after_a_whole_mini_batch(moved: Any, x_TD: Tensor) -> None:
    mixer = moved(Config.read({"kind": "ttt_linear", "mini_batch": 7}))
    _, (weight, _, sum_weight, sum_bias, seen) = mixer(x_TD[None])
    assert int(seen) == 21
    assert not sum_weight.any()
    assert not sum_bias.any()
    assert (weight - mixer.inner_HKF).abs().max() > 1e-3
    _, (same, _, sum_weight, _, _) = mixer(x_TD[None, :3], mixer.empty_state(1))
    torch.testing.assert_close(same[0], mixer.inner_HKF)
    assert sum_weight.any()
