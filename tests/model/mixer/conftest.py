"""Mixers in float64 whose parameters have all left their initial values."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.model.parts import Mixer, MixerConfig, Site, initialise

WIDTH, TIME = 16, 21


@pytest.fixture
def moved() -> Callable[[MixerConfig], Mixer]:
    """Builds a mixer of width 16 and moves every parameter."""

    def build(config: MixerConfig) -> Mixer:
        mixer = config.build(WIDTH, Site(1, 4)).double()
        initialise(mixer, 0)
        with torch.no_grad():
            for name, parameter in mixer.named_parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator(1, name), dtype=torch.float64)
        return mixer

    return build


@pytest.fixture
def x_TD() -> Tensor:
    """One sequence."""
    return torch.randn(TIME, WIDTH, generator=generator(0, "sequence"), dtype=torch.float64)
