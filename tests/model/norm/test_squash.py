"""DyT, Derf and the other squashing functions: closed forms, gradients of their scalars, and the four properties."""

import math

import pytest
import torch

from fairway.core.errors import ConfigError
from fairway.model.lm import ModelConfig
from fairway.model.norm.derf import Config as Derf
from fairway.model.norm.dyt import Config as Dyt
from fairway.model.norm.pointwise import Config as Pointwise
from fairway.model.squash import FUNCTIONS, properties
from laws import building
from laws.mixers import sample
from laws.models import built_model, model_config


def test_the_gradient_of_alpha_in_dyt_is_its_closed_form() -> None:
    norm = building.opened(lambda: Dyt(alpha=0.7).build(6))
    x, g = sample(6), sample(6, seed=1)
    (norm(x) * g).sum().backward()
    expected = (g * norm.gain_D * x / torch.cosh(norm.alpha * x).square()).sum()
    assert torch.allclose(norm.alpha.grad, expected, atol=1e-11)


def test_the_gradients_of_derf_are_their_closed_forms() -> None:
    norm = building.opened(lambda: Derf(alpha=0.7, shift=0.2).build(6))
    x, g = sample(6), sample(6, seed=1)
    (norm(x) * g).sum().backward()
    bell = (2 / math.sqrt(math.pi)) * torch.exp(-(norm.alpha * x + norm.shift).square())
    assert torch.allclose(norm.shift.grad, (g * norm.gain_D * bell).sum(), atol=1e-11)
    assert torch.allclose(norm.alpha.grad, (g * norm.gain_D * bell * x).sum(), atol=1e-11)


def test_derf_is_the_error_function_of_scipy() -> None:
    special = pytest.importorskip("scipy.special")
    norm = building.opened(lambda: Derf(shift=0.1, bias=False).build(6))
    x = sample(6)
    u = (norm.alpha * x + norm.shift).detach().numpy()
    assert torch.allclose(norm(x), norm.gain_D * torch.from_numpy(special.erf(u)), atol=1e-12)


def test_half_precision_inputs_are_squashed_in_single_precision() -> None:
    norm = building.built(lambda: Derf().build(6), dtype=torch.bfloat16)
    x = sample(6).bfloat16()
    wide = building.built(lambda: Derf().build(6), dtype=torch.float32)
    wide.load_state_dict({k: v.float() for k, v in norm.state_dict().items()})
    assert torch.equal(norm(x), wide(x.float()).bfloat16())


@pytest.mark.parametrize("config", [Dyt(alpha=1e-6), Derf(alpha=1e-6), Pointwise(alpha=1e-6)])
def test_a_tiny_alpha_makes_a_linear_map(config: Dyt | Derf | Pointwise) -> None:
    norm = building.opened(lambda: config.build(6), awake=False)
    x = sample(6)
    slope = 2 / math.sqrt(math.pi) if config.kind == "derf" else 1.0
    assert torch.allclose(norm(x) / 1e-6, slope * x, atol=1e-9)


def test_alpha_is_one_scalar_whose_start_depends_on_the_place() -> None:
    config = Dyt(alpha=0.2, alpha_at={"mixer": 0.8})
    for site, start in (("mixer", 0.8), ("ffn", 0.2), ("final", 0.2)):
        norm = building.opened(lambda site=site: config.build(6, site), awake=False)
        assert norm.alpha.ndim == 0
        assert norm.alpha.item() == start


def test_every_candidate_function_has_the_four_properties_but_the_flat_cubic() -> None:
    for name, function in FUNCTIONS.items():
        found = properties(function)
        assert found.fit() == (name != "cubic"), f"{name}: {found}"
        assert found.zero_centred
        assert found.monotone
        assert found.bound <= 1.0 + 1e-9, f"{name} reaches {found.bound}"


@pytest.mark.parametrize(
    ("function", "broken"),
    [
        (lambda u: torch.tanh(u + 2), "zero_centred"),
        (lambda u: torch.sign(u) * torch.log1p(u.abs()), "bounded"),
        (lambda u: u, "bounded"),
        (lambda u: torch.tanh(u) * (u.abs() > 1), "centre_sensitive"),
        (lambda u: torch.sin(u), "monotone"),
        (lambda u: torch.relu(u), "bounded"),
        (lambda u: u * torch.exp(-u.square()), "monotone"),
    ],
)
def test_a_function_that_lacks_a_property_is_told(function: object, broken: str) -> None:
    assert callable(function)
    found = properties(function)
    assert not getattr(found, broken)
    assert not found.fit()


def test_known_distances_between_tanh_and_the_error_function() -> None:
    x = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    for factor, gap in ((math.sqrt(math.pi) / 2, 0.134), (2 / math.sqrt(math.pi), 0.035), (1.203, 0.019)):
        assert (torch.tanh(factor * x) - torch.erf(x)).abs().max().item() == pytest.approx(gap, abs=6e-4)


@pytest.mark.parametrize("kind", ["dyt", "derf", "pointwise"])
def test_models_without_norm_learn_a_scale_of_the_embedding(kind: str) -> None:
    model = built_model(model_config(norm=kind), awake=False)
    assert model.scale is not None
    assert model.scale.scale is not None
    assert model.scale.scale.item() == pytest.approx(math.sqrt(48))
    assert model.scale.scale.requires_grad
    with pytest.raises(ConfigError, match="learned, sqrt or auto"):
        ModelConfig.read({"norm": kind, "embedding": {"kind": "token", "scale": "none"}})
    assert built_model(model_config(norm="rms")).scale is None


def test_an_unknown_function_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ConfigError, match="cosine"):
        ModelConfig.read({"norm": {"kind": "pointwise", "function": "cosine"}})
