"""One-curve schedules against torch's and their equations."""

import math

import pytest
import torch

from fairway.core.errors import ConfigError
from fairway.optim.schedule.curves import Config


def test_cosine_equals_torch() -> None:
    config = Config(kind="cosine", warmup=0.0, floor=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=0.1)
    for step in range(101):
        assert config.factor(step / 100) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_values_at_corners_and_middles() -> None:
    assert Config(kind="linear", warmup=0.2, floor=0.5).factor(0.6) == pytest.approx(0.75)
    assert Config(kind="linear", warmup=0.2, floor=0.5).factor(1.0) == pytest.approx(0.5)
    assert Config(kind="cosine", warmup=0.2).factor(0.6) == pytest.approx(0.5)
    assert Config(kind="inverse_sqrt", warmup=0.04).factor(0.16) == pytest.approx(0.5)
    assert Config(kind="inverse_sqrt", warmup=0.01, floor=0.3).factor(1.0) == pytest.approx(0.3)
    assert Config(kind="constant", warmup=0.5).factor(0.75) == 1.0
    assert Config(kind="constant", warmup=0.5, start=0.2).factor(0.25) == pytest.approx(0.6)


def test_the_inverse_root_follows_vaswani_after_the_warmup() -> None:
    steps, warmup = 4000, 400
    config = Config(kind="inverse_sqrt", warmup=warmup / steps, start=0.0)
    for step in (1, 100, 400, 401, 1000, 4000):
        reference = min(step**-0.5, step * warmup**-1.5) * math.sqrt(warmup)
        assert config.factor(step / steps) == pytest.approx(reference)


def test_an_inverse_root_without_warmup_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup of 0\.01"):
        Config.read({"kind": "inverse_sqrt", "warmup": 0})
