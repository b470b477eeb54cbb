"""The router's kernel against its definition: what it chooses, and all gradients, on each instruction level."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fairway.core import native as library
from fairway.core.seed import generator
from fairway.ops.route import naive
from fairway.ops.route.native import route
from laws.levels import EVERY_LEVEL, at_level

SHAPES = [(0, 16, 3, 1), (1, 16, 1, 1), (5, 32, 3, 3), (75, 48, 8, 2), (130, 16, 20, 4), (67, 192, 16, 1)]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "route", *shape), dtype=torch.float64)


def both_ways(
    given: list[Tensor], bias: Tensor | None, top: int, form: naive.Form, renormalise: bool, which: str
) -> Any:
    """The choice, its figures, and the gradients of the results that `which` names."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in given]
    call = naive.route if given[0].dtype == torch.float64 else route
    found = call(leaves[0], leaves[1], bias, top, form, renormalise=renormalise)
    parts = [getattr(found, f"{name}_N{'K' if name == 'gate' else 'E'}") for name in which.split()]
    weights = [drawn(*part.shape).to(part.dtype) for part in parts]
    return found, torch.autograd.grad(parts, leaves, weights)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("which", ["gate", "gate scores logits", "scores"])
@pytest.mark.parametrize(("form", "renormalise"), [("softmax", True), ("softmax", False), ("sigmoid", True)])
@pytest.mark.parametrize(("tokens", "width", "experts", "top"), SHAPES)
def test_tokens_go_where_the_definition_sends_them_with_all_gradients(
    tokens: int, width: int, experts: int, top: int, form: naive.Form, renormalise: bool, which: str, level: str | None
) -> None:
    given = [drawn(tokens, width).float(), drawn(experts, width).float() / width**0.5]
    bias = drawn(experts).float() / 4 if renormalise else None
    wanted, slopes = both_ways([tensor.double() for tensor in given], bias, top, form, renormalise, which)
    with at_level(level):
        seen, own = both_ways(given, bias, top, form, renormalise, which)
    assert torch.equal(seen.expert_NK, wanted.expert_NK)
    for name in ("logits_NE", "scores_NE", "gate_NK"):
        torch.testing.assert_close(getattr(seen, name).double(), getattr(wanted, name), rtol=2e-6, atol=2e-6)
    for slope, exact in zip(own, slopes, strict=True):
        assert slope.dtype == torch.float32
        assert (slope - exact).norm() <= 3e-6 * exact.norm().clamp_min(2.0)


@pytest.mark.parametrize("level", EVERY_LEVEL[1:])
def test_the_first_of_equal_experts_is_taken_and_never_one_twice(level: str) -> None:
    x, router = torch.ones(3, 16), torch.zeros(5, 16)
    x[1, 0] = float("nan")
    router[3] = 1.0
    with at_level(level):
        found = route(x, router, None, 3, "softmax", renormalise=True)
    assert found.expert_NK.tolist() == [[3, 0, 1], [0, 1, 2], [3, 0, 1]]
    assert found.gate_NK[1].isnan().all()
    assert not found.gate_NK[::2].isnan().any()


@pytest.mark.parametrize("level", EVERY_LEVEL[1:])
def test_a_token_is_routed_the_same_whatever_is_beside_it(level: str) -> None:
    x, router = drawn(100, 48).float(), drawn(8, 48).float()
    with at_level(level):
        whole = route(x, router, None, 2, "softmax", renormalise=True)
        part = route(x[37:70], router, None, 2, "softmax", renormalise=True)
    assert torch.equal(whole.logits_NE[37:70], part.logits_NE)
    assert torch.equal(whole.gate_NK[37:70], part.gate_NK)


@pytest.mark.skipif(library.level() is None, reason="without kernels the registered op cannot run")
def test_the_registered_op_is_differentiable_and_has_a_fake() -> None:
    x, router = drawn(9, 16).float().requires_grad_(), drawn(4, 16).float().requires_grad_()
    result = torch.library.opcheck(torch.ops.fairway.route.default, (x, router, None, 2, False, True))
    assert set(result.values()) == {"SUCCESS"}
