"""Norms against torch, closed forms and each other, in float64."""

import math

import pytest
import torch
from torch.nn import functional

from fairway.model.norm.layer import Config as Layer
from fairway.model.norm.rms import Config as Rms
from laws import building
from laws.mixers import sample


def test_layer_norm_is_torchs_forward_and_backward() -> None:
    norm = building.opened(lambda: Layer(eps=1e-3).build(10))
    x, weight = sample(10).requires_grad_(), sample(10, seed=1)
    gain, bias = norm.gain_D, norm.bias_D
    ours = torch.autograd.grad((norm(x) * weight).sum(), [x, gain, bias])
    theirs = torch.autograd.grad((functional.layer_norm(x, (10,), gain, bias, 1e-3) * weight).sum(), [x, gain, bias])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_layer_norm_is_rms_norm_of_the_centred_input_plus_bias() -> None:
    layer, rms = building.opened(lambda: Layer(eps=1e-6).build(10)), building.opened(lambda: Rms(eps=1e-6).build(10))
    rms.gain.data.copy_(layer.gain_D)
    x = sample(10)
    centred = x - x.mean(-1, keepdim=True)
    assert torch.allclose(layer(x), rms(centred) + layer.bias_D, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_rms_norm_is_its_equation(fraction: float) -> None:
    norm = building.opened(lambda: Rms(fraction=fraction, eps=1e-4).build(12))
    x = sample(12)
    measured = x[..., : int(12 * fraction)]
    expected = norm.gain * x / torch.sqrt(measured.square().mean(-1, keepdim=True) + 1e-4)
    assert torch.allclose(norm(x), expected, rtol=0, atol=1e-12)


def test_a_gain_stored_as_its_distance_from_one_gives_the_same_norm() -> None:
    plain, offset = (building.opened(lambda u=u: Rms(unit_offset=u).build(6)) for u in (False, True))
    with torch.no_grad():
        plain.gain.copy_(torch.linspace(0.5, 2, 6))
        offset.gain.copy_(torch.linspace(0.5, 2, 6) - 1)
    assert torch.allclose(plain(sample(6)), offset(sample(6)))


def test_norms_ignore_the_scale_and_rms_norm_has_no_slope_along_its_input() -> None:
    norm = building.opened(lambda: Rms(eps=1e-14).build(8))
    x = sample(8)
    assert torch.allclose(norm(37.0 * x), norm(x), atol=1e-10)
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    (along,) = torch.autograd.grad((norm(factor * x) * sample(8, seed=1)).sum(), factor)
    assert along.abs() < 1e-10


def test_the_epsilon_stands_inside_the_root() -> None:
    norm = building.opened(lambda: Rms(gain=False, eps=0.25).build(4))
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    assert torch.allclose(norm(x), x / math.sqrt(0.5))
