"""Every norm that stands in its folder keeps the contract of norms, wherever it may be put."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fairway.core.config import Slot
from fairway.model.parts import Norm, NormConfig
from laws import building
from laws.mixers import sample

SLOT = Slot("fairway.model.norm", "rms")
SITES = ("mixer", "ffn", "final", "qk", "block")


def make(kind: str, site: str = "mixer", width: int = 12) -> Callable[[], Norm]:
    config = SLOT.config(kind)(kind=kind)
    assert isinstance(config, NormConfig)
    return lambda: config.build(width, site)


def check_is_local(norm: Callable[[Tensor], Tensor]) -> None:
    """Each vector is treated by itself."""
    x = sample(12, 5)
    with torch.no_grad():
        whole = norm(x)
        alone = torch.stack([norm(x[:, t]) for t in range(x.shape[1])], dim=1)
    assert torch.allclose(whole, alone, rtol=0, atol=1e-12), "a vector's norm depends on other vectors"
    assert not torch.allclose(whole, x), "the norm does nothing"


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_every_norm_has_its_card(kind: str) -> None:
    for site in SITES:
        building.check_card(make(kind, site))


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_every_norm_treats_each_vector_by_itself(kind: str) -> None:
    check_is_local(building.built(make(kind)))


def test_a_norm_over_the_wrong_dimension_is_noticed() -> None:
    with pytest.raises(AssertionError, match="depends on other vectors"):
        check_is_local(lambda x: x / x.square().mean(-2, keepdim=True).sqrt() if x.ndim == 3 else x)


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_every_norm_keeps_shape_and_dtype_and_computes_wide(kind: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        norm = building.built(make(kind), dtype=torch.float32)
        x = (3 * sample(12, 5)).to(dtype)
        y = norm(x)
        assert y.shape == x.shape
        assert y.dtype == dtype
        exact = building.built(make(kind))(x.double())
        error = (y.double() - exact).abs().max() / exact.abs().max()
        assert error < (0.006 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_every_norm_survives_zeros_and_large_numbers(kind: str) -> None:
    norm = building.built(make(kind), dtype=torch.float32)
    for scale in (0.0, 1e-20, 1e6, 1e15):
        x = (scale * sample(12, 5).float()).requires_grad_()
        y = norm(x)
        y.sum().backward()
        assert y.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_gradients_of_every_norm_are_those_of_finite_differences(kind: str) -> None:
    norm = building.built(make(kind, width=5))
    x = sample(5, 3).requires_grad_()
    weight = sample(5, 3, seed=3)
    loss = (norm(x) * weight).sum()
    wanted = [x, *norm.parameters()]
    exact = torch.autograd.grad(loss, wanted)
    for value, gradient in zip(wanted, exact, strict=True):
        assert gradient.any()
        flat = value.detach().view(-1)
        for index in range(flat.numel()):
            assert gradient.reshape(-1)[index].item() == pytest.approx(
                slope(lambda: float((norm(x) * weight).sum().detach()), flat, index), rel=1e-6, abs=1e-8
            )


def slope(loss: Callable[[], float], flat: Tensor, index: int, step: float = 1e-6) -> float:
    """Central difference along one entry."""
    with torch.no_grad():
        kept = flat[index].item()
        flat[index] = kept + step
        above = loss()
        flat[index] = kept - step
        below = loss()
        flat[index] = kept
    return (above - below) / (2 * step)
