"""Grouped experts and those of the kernel against the dense masked loop: outputs and all gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fairway.core import native as library
from fairway.core.seed import generator
from fairway.model.activation import ACTIVATIONS
from fairway.ops.experts import grouped, naive, native
from laws.levels import EVERY_LEVEL, at_level


def tensors(gated: bool, experts: int = 5, tokens: int = 14) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(tokens, 6), (tokens, experts), (experts, 8 if gated else 4, 6), (experts, 6, 4)]
    return [torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("assignments", [0, 1, 20])
def test_grouped_experts_are_the_masked_loop_over_all(gated: bool, assignments: int) -> None:
    x, gates, w_in, w_out = tensors(gated)
    places = torch.randperm(14 * 4, generator=torch.Generator().manual_seed(1))[:assignments]
    token, expert = places // 4, places % 4
    mask = torch.zeros_like(gates).index_put((token, expert), torch.ones(assignments, dtype=torch.float64))
    weight = torch.randn(14, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    dense = naive.mix(x, gates * mask, w_in, w_out, ACTIVATIONS["silu"], gated=gated)
    sparse = grouped.mix(x, token, expert, gates[token, expert], w_in, w_out, ACTIVATIONS["silu"], gated=gated)
    assert torch.allclose(sparse, dense, rtol=0, atol=1e-11)
    ours = torch.autograd.grad((sparse * weight).sum(), [x, gates, w_in, w_out])
    theirs = torch.autograd.grad((dense * weight).sum(), [x, gates, w_in, w_out])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)
    assert not ours[2][4].any()


def drawn(tokens: int, width: int, hidden: int, experts: int, gated: bool) -> list[Tensor]:
    source = generator(0, "experts")
    shapes = [
        (tokens, width),
        (tokens, experts),
        (experts, hidden * (2 if gated else 1), width),
        (experts, width, hidden),
    ]
    x, gates, first, second = (torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes)
    return [x, gates, first / width**0.5, second / hidden**0.5]


def both_ways(call: Any, given: list[Tensor], weight: Tensor) -> list[Tensor]:
    """The output and all gradients."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in given]
    y = call(*leaves)
    return [y.detach(), *torch.autograd.grad((y * weight.to(y.dtype)).sum(), leaves)]


def distance(seen: Tensor, wanted: Tensor) -> float:
    return float((seen.double() - wanted).norm() / wanted.norm().clamp_min(1e-12))


TYPES = [
    (torch.float32, torch.float32, 2e-6),
    (torch.bfloat16, torch.float32, 8e-3),
    (torch.bfloat16, torch.bfloat16, 1e-2),
]
SIZES = [(37, 18, 10, 5, 61), (150, 96, 72, 3, 280), (700, 34, 40, 3, 1301), (20, 32, 300, 4, 59)]


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "weights", "error"), TYPES)
@pytest.mark.parametrize(("tokens", "width", "hidden", "experts", "assignments"), SIZES)
@pytest.mark.parametrize(("point", "gated"), [("silu", True), ("gelu", True), ("relu", True), ("relu2", False)])
def test_the_kernel_is_the_masked_loop_with_all_gradients(
    point: str, gated: bool, tokens: int, width: int, hidden: int, experts: int, assignments: int, dtype: torch.dtype,
    weights: torch.dtype, error: float, level: str | None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(native, "_FEWEST", 0)
    x, gates, first, second = drawn(tokens, width, hidden, experts, gated)
    given = [x.to(dtype), gates.float(), *(w.to(dtype).to(weights) for w in (first, second))]
    place = torch.randperm(tokens * (experts - 1), generator=generator(1, "experts"))[:assignments]
    token, expert = place // (experts - 1), place % (experts - 1)
    mask = torch.zeros(tokens, experts, dtype=torch.float64).index_put(
        (token, expert), torch.ones(assignments).double()
    )
    weight = torch.randn(tokens, width, generator=generator(2, "experts"), dtype=torch.float64)
    act = ACTIVATIONS[point]
    wanted = both_ways(
        lambda x, g, w, v: naive.mix(x, g * mask, w, v, act, gated=gated), [t.double() for t in given], weight
    )
    with at_level(level):
        assert native._serves(given[0], given[2], given[3], act, assignments) == (library.level() is not None)
        seen = both_ways(
            lambda x, g, w, v: native.mix(x, token, expert, g[token, expert], w, v, act, gated=gated), given, weight
        )
    assert [tensor.dtype for tensor in seen] == [dtype, dtype, torch.float32, weights, weights]
    assert max(distance(a, b) for a, b in zip(seen, wanted, strict=True)) < error
    assert not seen[3][-1].any()
    assert not seen[4][-1].any()


def test_a_row_of_the_kernel_does_not_depend_on_those_beside_it() -> None:
    x, gates, first, second = (tensor.float() for tensor in drawn(200, 32, 48, 2, True))
    token, expert = torch.arange(200).repeat(2), torch.arange(2).repeat_interleave(200)
    act = ACTIVATIONS["silu"]
    all_ND = native.mix(x, token, expert, gates[token, expert], first, second, act, gated=True)
    few = token < 70
    some_ND = native.mix(
        x[:70], token[few], expert[few], gates[token, expert][few], first, second, act, gated=True
    )  # fmt: skip
    assert torch.equal(all_ND[:70], some_ND)


@pytest.mark.parametrize(
    ("width", "hidden", "assignments", "point"),
    [(17, 8, 100, "silu"), (16, 7, 100, "silu"), (16, 8, 9, "silu"), (16, 8, 100, "sigmoid")],
)
def test_what_the_kernel_does_not_serve_is_done_by_grouped_products(
    width: int, hidden: int, assignments: int, point: str
) -> None:
    x, gates, first, second = (tensor.float() for tensor in drawn(100, width, hidden, 1, True))
    token = torch.arange(assignments)
    gate, expert = gates[token, 0], torch.zeros_like(token)
    act = ACTIVATIONS[point]
    assert not native._serves(x, first, second, act, assignments)
    seen = native.mix(x, token, expert, gate, first, second, act, gated=True)
    wanted = naive.mix(x[:assignments], gate[:, None], first, second, act, gated=True)
    assert torch.allclose(seen[:assignments], wanted, atol=1e-5)
