"""Muon step for step against torch.optim.Muon, and its options against their equations."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from fairway.core.seed import generator
from fairway.model.parts import Part, Role
from fairway.optim.optimizer.muon import Config, ScaleRule, update_scale
from fairway.optim.orthogonal import coefficients, orthogonalise

SHAPES: dict[str, tuple[int, ...]] = {
    "square": (16, 16),
    "wide": (16, 40),
    "tall": (40, 16),
    "long": (8, 64),
    "second": (16, 16),
}


class Matrices(Part):
    """Matrices of several shapes; `fused` names pieces."""

    def __init__(
        self,
        shapes: dict[str, tuple[int, ...]],
        dtype: torch.dtype = torch.float64,
        fused: dict[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.fused = fused or {}
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=generator(0, name), dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value.to(dtype)))

    def roles(self) -> dict[str, Role]:
        return dict.fromkeys(self._parameters, Role.MATRIX)

    def pieces(self) -> dict[str, tuple[int, ...]]:
        return self.fused


def give_gradients(model: nn.Module, step: int) -> None:
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator(7, name, step), dtype=torch.float64)
        parameter.grad = (noise + 0.3 * parameter.detach().double()).to(parameter.dtype)


@contextmanager
def torch_muon_in_full_precision() -> Iterator[None]:
    """Lets torch's Muon iterate in the gradient's own type instead of bfloat16."""
    with patch.object(torch.Tensor, "bfloat16", lambda tensor: tensor.clone()):
        yield


def peer(model: Matrices, rule: ScaleRule, lr: float, decay: float, nesterov: bool = True) -> list[torch.optim.Muon]:
    """torch's Muon; for `spectral`, which it lacks, one instance per matrix with the factor in its rate."""
    if rule != "spectral":
        return [torch.optim.Muon(model.parameters(), lr=lr, weight_decay=decay, nesterov=nesterov, adjust_lr_fn=rule)]
    peers = []
    for parameter in model.parameters():
        rows, columns = parameter.shape
        factor = math.sqrt(rows / columns) / math.sqrt(max(1.0, rows / columns))
        peers.append(torch.optim.Muon([parameter], lr=lr * factor, weight_decay=decay / factor, nesterov=nesterov))
    return peers


@pytest.mark.parametrize("rule", ["original", "spectral", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_a_hundred_steps_equal_torch_in_float64(rule: ScaleRule, nesterov: bool) -> None:
    ours, theirs = Matrices(SHAPES), Matrices(SHAPES)
    config = Config(lr=0.02, weight_decay=0.1, scale=rule, first_momentum=0.95, nesterov=nesterov)
    optimizer, others = config.build(ours), peer(theirs, rule, 0.02, 0.1, nesterov)
    for step in range(100):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step(1.0, step / 100)
        with torch_muon_in_full_precision():
            for other in others:
                other.step()
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), value, rtol=1e-9, atol=1e-9)


def test_a_hundred_bfloat16_steps_stay_as_close_to_torch_as_rounding_allows() -> None:
    ours, theirs, exact = Matrices(SHAPES, torch.float32), Matrices(SHAPES, torch.float32), Matrices(SHAPES)
    settings = Config(lr=0.02, weight_decay=0.1, first_momentum=0.95, arithmetic="bfloat16")
    optimizer, reference, (other,) = (
        settings.build(ours),
        settings.build(exact),
        peer(theirs, "original", 0.02, 0.1),
    )
    for step in range(100):
        for model in (ours, theirs, exact):
            give_gradients(model, step)
        optimizer.step(1.0, step / 100)
        reference.step(1.0, step / 100)
        other.step()
    for name, value in exact.named_parameters():
        our_error = (ours.get_parameter(name) - value).norm() / value.norm()
        their_error = (theirs.get_parameter(name) - value).norm() / value.norm()
        assert our_error < 1.2 * their_error + (1e-4 if value.shape[0] == value.shape[1] else 0.01), name
        assert our_error < 0.02, name


def test_weight_decay_follows_the_schedule_and_momentum_warms_up() -> None:
    config = Config(first_momentum=0.8, momentum=0.9, momentum_warmup=0.5)
    assert [config.momentum_at(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.8, 0.85, 0.9, 0.9])
    assert Config(momentum_warmup=0.0).momentum_at(0.0) == pytest.approx(0.95)
    model = Matrices({"w": (4, 6)})
    optimizer = config.build(model)
    give_gradients(model, 0)
    optimizer.step(1.0, 0.25)
    gradient = model.get_parameter("w").grad
    assert gradient is not None
    torch.testing.assert_close(optimizer.state()["w/momentum"], 0.15 * gradient)


def direction(config: Config, gradient: Tensor, fused: tuple[int, ...] | None = None) -> Tensor:
    """The first update of a fresh Muon, rate and scale divided out by `match_rms_adamw` alone."""
    model = Matrices({"w": tuple(gradient.shape)}, gradient.dtype, {"w": fused} if fused else None)
    before = model.get_parameter("w").detach().clone()
    model.get_parameter("w").grad = gradient.clone()
    config.build(model).step(1.0, 1.0)
    return (before - model.get_parameter("w").detach()) / config.lr


def alone(matrix: Tensor, rule: ScaleRule = "original") -> Tensor:
    rows, columns = matrix.shape
    return (
        update_scale(rule, rows, columns) * orthogonalise(matrix[None].clone(), coefficients("classic", 5), (1,) * 5)[0]
    )


def test_each_expert_and_each_fused_piece_is_its_own_matrix() -> None:
    experts = torch.randn(3, 10, 4, generator=generator(1), dtype=torch.float64)
    expected = torch.stack([alone(expert) for expert in experts])
    torch.testing.assert_close(direction(Config(), experts), expected, rtol=1e-9, atol=1e-9)
    fused = torch.randn(20, 8, generator=generator(2), dtype=torch.float64)
    expected = torch.cat([alone(fused[:4]), alone(fused[4:8]), alone(fused[8:])])
    torch.testing.assert_close(direction(Config(), fused, (4, 4, 12)), expected, rtol=1e-9, atol=1e-9)
    whole = direction(Config(), fused)
    assert (whole - expected).abs().max() > 0.05


def test_rows_are_equalised_before_the_iteration() -> None:
    gradient = torch.randn(6, 9, generator=generator(3), dtype=torch.float64)
    gradient *= torch.logspace(0, 3, 6, dtype=torch.float64)[:, None]
    even = gradient / gradient.norm(dim=1, keepdim=True)
    torch.testing.assert_close(direction(Config(equalise_rows=True), gradient), alone(even), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        direction(Config(equalise_rows=True), gradient.mT.contiguous()),
        alone(gradient.mT / gradient.mT.norm(dim=1, keepdim=True)),
        rtol=1e-9,
        atol=1e-9,
    )


def test_neurons_are_normalised_by_a_running_mean_and_the_norm_is_kept() -> None:
    model = Matrices({"w": (6, 9)})
    config = Config(normalise_neurons=True, neuron_beta=0.9, first_momentum=0.0, momentum=0.0, lr=0.1)
    optimizer = config.build(model)
    mean = torch.zeros(6, 1, dtype=torch.float64)
    expected = model.get_parameter("w").detach().clone()
    for step in range(5):
        give_gradients(model, step)
        gradient = model.get_parameter("w").grad
        assert gradient is not None
        o = alone(gradient)
        mean = 0.9 * mean + 0.1 * o.square().mean(1, keepdim=True)
        even = o / mean.sqrt()
        expected -= 0.1 * even * o.norm() / even.norm()
        optimizer.step(1.0, 0.5)
        torch.testing.assert_close(model.get_parameter("w").detach(), expected, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(optimizer.state()["w/squares"], mean[:, 0], rtol=1e-8, atol=1e-10)


def test_cautious_decay_acts_only_where_the_update_shrinks_the_weight() -> None:
    gradient = torch.randn(6, 9, generator=generator(4), dtype=torch.float64)
    model = Matrices({"w": (6, 9)})
    before = model.get_parameter("w").detach().clone()
    model.get_parameter("w").grad = gradient.clone()
    Config(lr=0.1, weight_decay=0.5, cautious=True).build(model).step(1.0, 1.0)
    update = alone(gradient)
    agree = update * before >= 0
    assert 0.2 < agree.double().mean() < 0.8
    expected = before * torch.where(agree, 1 - 0.1 * 0.5, 1.0) - 0.1 * update
    torch.testing.assert_close(model.get_parameter("w").detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arithmetic", ["bfloat16", "float32"])
@pytest.mark.parametrize("size", [1e-5, 1e-3, 1e9, 1e18])
def test_the_size_of_the_gradient_does_not_matter(arithmetic: str, size: float) -> None:
    gradient = torch.randn(8, 24, generator=generator(5))
    config = Config.read({"arithmetic": arithmetic})
    plain, scaled = direction(config, gradient), direction(config, size * gradient)
    torch.testing.assert_close(scaled, plain, rtol=0.05, atol=0.02)


def test_scales_by_shape() -> None:
    assert update_scale("original", 16, 64) == 1.0
    assert update_scale("original", 64, 16) == 2.0
    assert update_scale("spectral", 16, 64) == 0.5
    assert update_scale("match_rms_adamw", 16, 64) == pytest.approx(1.6)


def test_match_rms_adamw_gives_updates_of_a_fifth() -> None:
    gradient = torch.randn(64, 64, generator=generator(8), dtype=torch.float64)
    rms = direction(Config(scale="match_rms_adamw", coefficients="cubic", steps=30), gradient).square().mean().sqrt()
    assert rms == pytest.approx(0.2, rel=0.01)
