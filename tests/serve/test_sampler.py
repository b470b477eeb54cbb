"""Sampling: each filter against its definition by enumeration."""

from collections import Counter

import pytest
import torch

from fairway.core.errors import ConfigError
from fairway.serve.sampler import Sampler, SamplerConfig

P = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1], dtype=torch.float64)
LOGITS = P.log()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 2]),
        ({"top_p": 0.66}, [1, 2, 3]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.3}, [1, 2, 3]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "top_p": 0.76}, [1, 2]),
    ],
)
def test_a_filter_keeps_the_tokens_of_its_definition(settings: dict[str, float], kept: list[int]) -> None:
    p = Sampler(SamplerConfig.read({"temperature": 1.0, **settings})).probabilities(LOGITS)
    expected = torch.zeros_like(P)
    expected[kept] = P[kept] / P[kept].sum()
    assert torch.allclose(p, expected, atol=1e-12)


def test_temperature_is_a_power_of_the_probabilities() -> None:
    p = Sampler(SamplerConfig(temperature=0.5)).probabilities(LOGITS)
    assert torch.allclose(p, P**2 / (P**2).sum(), atol=1e-12)


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals() -> None:
    sampler = Sampler(SamplerConfig(temperature=0))
    assert sampler(LOGITS) == 1
    assert sampler(torch.tensor([0.0, 3.0, 3.0])) == 1
    assert sampler.probabilities(LOGITS).tolist() == [0, 1, 0, 0, 0]


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(SamplerConfig(temperature=1.0, seed=3))
    counts = Counter(sampler(LOGITS) for _ in range(4000))
    for token, probability in enumerate(P.tolist()):
        assert abs(counts[token] / 4000 - probability) < 4 * (probability * (1 - probability) / 4000) ** 0.5


def test_the_seed_decides_the_draws() -> None:
    draws = [
        [sampler(LOGITS) for _ in range(50)] for sampler in (Sampler(SamplerConfig(seed=seed)) for seed in (1, 1, 2))
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_k": 0}, {"min_p": 2}, {"temprature": 1}])
def test_a_setting_out_of_bounds_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SamplerConfig.read(wrong)
