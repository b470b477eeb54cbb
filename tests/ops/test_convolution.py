"""The kernel of the causal convolution against its definition: outputs, state, every gradient, on each level."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.native import usable
from fairway.core.seed import generator
from fairway.ops.conv import fastest, naive, native
from laws.levels import EVERY_LEVEL, at_level

DTYPES = [(torch.float32, 3e-6), (torch.bfloat16, 8e-3)]
SIZES = [(2, 37, 37, 4), (1, 3, 130, 4), (3, 1, 16, 4), (2, 9, 300, 2), (1, 20, 5, 7), (2, 6, 8, 1)]


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


def given(sizes: tuple[int, int, int, int], dtype: torch.dtype, bias: bool) -> list[Tensor | None]:
    """x is a part of wider rows, as a mixer hands it over."""
    batch, length, width, taps = sizes
    x = draw("x", batch, length, 2 * width + 3).to(dtype)[..., 2 : 2 + width]
    state = draw("state", batch, taps - 1, width).float()
    return [x, draw("w", width, taps).float(), draw("b", width).float() if bias else None, state]


def results(op: Callable[..., Any], tensors: list[Tensor | None], starts: Tensor | None) -> list[Tensor]:
    """Outputs, the last inputs, and the gradients of a weighting of both by everything."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    y, last = op(*leaves, starts)
    loss = (y.double() * draw("y", *y.shape)).sum() + (last.double() * draw("last", *last.shape)).sum()
    wanted = [x for x in leaves if x is not None]
    return [y, last, *torch.autograd.grad(loss, wanted)]


def defined(*given: Any) -> tuple[Tensor, Tensor]:
    y, last = naive.causal_conv(*given)
    return functional.silu(y), last


def starts_of(batch: int, length: int) -> Tensor:
    return torch.rand(batch, length, generator=generator(0, "starts")) < 0.25


def relative(seen: Tensor, wanted: Tensor) -> float:
    assert seen.shape == wanted.shape
    return float((seen.detach().double() - wanted.detach()).norm() / wanted.detach().norm().clamp_min(1e-6))


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_values_state_and_all_gradients(
    sizes: tuple[int, int, int, int], bias: bool, documents: bool, dtype: torch.dtype, error: float, level: str | None
) -> None:
    tensors = given(sizes, dtype, bias)
    starts = starts_of(*sizes[:2]) if documents else None
    wanted = results(defined, [None if x is None else x.double() for x in tensors], starts)
    with at_level(level):
        seen = results(fastest.causal_conv_silu, tensors, starts)
    assert seen[0].dtype == seen[2].dtype == dtype
    assert seen[1].dtype == torch.float32
    slack = 2 if level is None else 1  # without a kernel the sum is rounded before its SiLU
    for one, other in zip(seen, wanted, strict=True):
        assert relative(one, other) < slack * error


def test_without_a_silu_the_kernel_is_the_plain_convolution() -> None:
    tensors = given((2, 37, 37, 4), torch.float32, bias=True)
    starts = starts_of(2, 37)
    wanted = results(naive.causal_conv, [None if x is None else x.double() for x in tensors], starts)
    with at_level("portable"):
        seen = results(lambda *args: native.causal_conv(*args, silu=False), tensors, starts)
    for one, other in zip(seen, wanted, strict=True):
        assert relative(one, other) < 3e-6


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_cut_sequence_with_the_state_carried_is_the_whole(cut: int) -> None:
    x, weight, bias, state = given((2, 37, 37, 4), torch.float32, bias=True)
    assert x is not None
    assert weight is not None
    assert state is not None
    starts = starts_of(2, 37)
    whole, after = fastest.causal_conv_silu(x, weight, bias, state, starts)
    first, middle = fastest.causal_conv_silu(x[:, :cut], weight, bias, state, starts[:, :cut])
    second, last = fastest.causal_conv_silu(x[:, cut:], weight, bias, middle, starts[:, cut:])
    joined = torch.cat((first, second), 1)
    assert relative(joined, whole) < 1e-6  # torch's loops may round otherwise at the end of a row of vectors
    assert torch.equal(joined, whole) or not usable(x)
    assert torch.equal(last, after)


def test_an_empty_piece_changes_nothing() -> None:
    x, weight, bias, state = given((2, 3, 8, 4), torch.float32, bias=True)
    assert x is not None
    assert weight is not None
    assert state is not None
    y, last = fastest.causal_conv_silu(x[:, :0], weight, bias, state)
    assert y.shape == (2, 0, 8)
    assert torch.equal(last, state)


def test_the_registered_op_is_differentiable_and_has_fakes() -> None:
    x, weight, bias, state = given((2, 9, 8, 4), torch.float32, bias=True)
    assert weight is not None
    arguments = (x, weight.T.contiguous(), bias, state, starts_of(2, 9), True)
    leaves = tuple(a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)
    with at_level("portable"):
        result = torch.library.opcheck(torch.ops.fairway.causal_conv.default, leaves)
    assert set(result.values()) == {"SUCCESS"}
