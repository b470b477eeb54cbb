"""The trapezoid against torch's composed schedules and its own corners."""

import pytest
import torch

from fairway.core.errors import ConfigError
from fairway.optim.schedule.trapezoid import Config


def test_it_equals_torch_linear_constant_linear() -> None:
    steps, warmup, cooldown, start, floor = 200, 20, 80, 0.05, 0.1
    config = Config(warmup=warmup / steps, cooldown=cooldown / steps, start=start, floor=floor)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, start, 1.0, warmup),
            torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
            torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, floor, cooldown),
        ],
        [warmup, steps - cooldown],
    )
    for step in range(steps + 1):
        assert config.factor(step / steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        optimizer.step()
        schedule.step()


def test_without_warmup_and_cooldown_it_is_flat() -> None:
    config = Config(warmup=0.0, cooldown=0.0, floor=0.3)
    assert [config.factor(p) for p in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]


def test_shares_of_more_than_the_whole_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than the whole"):
        Config.read({"warmup": 0.6, "cooldown": 0.6})
