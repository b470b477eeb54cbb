"""Mamba and Mamba-2: initial values, and the order of decay and write."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.model.mixer.mamba import Config as Mamba
from fairway.model.mixer.mamba2 import Config as Mamba2
from fairway.model.parts import initialise


def test_initial_values_are_the_published_ones() -> None:
    mixer: Any = Mamba().build(64)
    initialise(mixer, 0)
    assert mixer.rank == 4
    torch.testing.assert_close(mixer.A_log_EN.exp(), torch.arange(1.0, 17.0).expand(128, 16))
    assert (mixer.skip_E == 1).all()
    step = functional.softplus(mixer.step_bias_E.detach())
    assert 0.00099 < float(step.min()) < 0.003
    assert 0.03 < float(step.max()) < 0.101
    second: Any = Mamba2().build(64)
    initialise(second, 0)
    assert (second.A_log_H.exp() >= 1).all()
    assert (second.A_log_H.exp() <= 16).all()


@pytest.mark.parametrize("config", [Mamba(), Mamba(discretisation="zoh"), Mamba2(states=4)])
def test_a_single_token_is_written_without_decay(moved: Any, x_TD: Tensor, config: Any) -> None:
    mixer = moved(config)
    with torch.no_grad():
        _, (_, faint) = mixer(x_TD[None, :1])
        for name, parameter in mixer.named_parameters():
            if name.startswith("A_log"):
                parameter += 1.0
        _, (_, strong) = mixer(x_TD[None, :1])
    assert faint.abs().max() > 0
    assert torch.equal(faint, strong) == (getattr(config, "discretisation", "euler") == "euler")


def test_zero_order_hold_approaches_euler_as_steps_shrink(moved: Any, x_TD: Tensor) -> None:
    outputs = []
    for discretisation in ("euler", "zoh"):
        mixer = moved(Mamba.read({"discretisation": discretisation}))
        with torch.no_grad():
            mixer.step_bias_E.fill_(-12.0)
        outputs.append(mixer(x_TD[None])[1][1])
    torch.testing.assert_close(*outputs, rtol=1e-2, atol=1e-12)
    assert not torch.equal(*outputs)
