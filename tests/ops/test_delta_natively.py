"""The delta rules of bfloat16 queries, keys and values by the native kernel, at each level, against the definition."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core import native
from fairway.core.seed import generator
from fairway.ops.delta.fastest import delta
from fairway.ops.delta.naive import delta as definition
from laws.levels import EVERY_LEVEL, at_level

Tensors = list[Tensor]

PAIRED = 1e-2
"""What pairs of bfloat16 may be off, relative and as norms, and gradients from errors that are kept in bfloat16."""
HALF, SINGLE = 2**-8, 2e-5
"""What a rounding to bfloat16 may be off, and float32."""
WIDTHS = [(1, 2, 5, 3), (2, 3, 6, 6), (2, 2, 19, 70), (1, 1, 64, 64), (1, 2, 65, 33)]
"""Batches, heads, and widths of keys and of values: less than a vector of them, and several that are not filled."""


def sizes(draw: Any, gated: bool, length: int, shape: tuple[int, int, int, int]) -> Tensors:
    """Bfloat16 queries, keys and values, and float32 betas, decays and a state."""
    batch, heads, keys, values = shape
    q, k = draw(batch, length, heads, keys), functional.normalize(draw(batch, length, heads, keys), dim=-1)
    narrow = [tensor.bfloat16() for tensor in (q, k, draw(batch, length, heads, values))]
    rest = [draw(batch, length, heads).sigmoid(), functional.logsigmoid(draw(batch, length, heads) + 2)]
    return [*narrow, *(tensor.float() for tensor in (*rest[: 1 + gated], draw(batch, heads, keys, values)))]


def call(function: Any, given: Tensors, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    *inputs, state = given
    return function(*inputs, *[None] * (5 - len(inputs)), state, starts)


def everything(function: Any, given: Tensors, starts: Tensor | None = None) -> Tensors:
    """Output, state and the gradients of a fixed weighting of both by every argument."""
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    results = call(function, leaves, starts)
    source = generator(0, "weighting")
    weights = [torch.randn(x.shape, generator=source, dtype=torch.float64).bfloat16().to(x.dtype) for x in results]
    loss = torch.stack([(x.double() * weight).sum() for x, weight in zip(results, weights, strict=True)]).sum()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [x.detach() for x in (*results, *gradients)]


def error(seen: Tensor, wanted: Tensor) -> float:
    return float((seen.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-6))


def tolerances(level: str | None, count: int) -> list[float]:
    """Of the output, the state and `count` gradients."""
    if level is None:
        return [HALF, SINGLE, *[HALF] * 3, *[SINGLE] * (count - 3)]
    if level in ("avx512bf16", "amx"):
        return [PAIRED] * (2 + count)
    return [HALF, SINGLE, *[PAIRED] * count]


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("length", [0, 1, 16, 33, 150])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_outputs_states_and_gradients_are_near_those_of_the_definition(
    gated: bool, length: int, level: str | None, draw: Any
) -> None:
    starts = torch.rand(2, length, generator=generator(0, "starts")) < 0.1
    for shape in WIDTHS:
        given = sizes(draw, gated, length, shape)
        for places in (None, starts[: shape[0]]):
            wanted = everything(definition, [tensor.double() for tensor in given], places)
            with at_level(level):
                seen = everything(delta, given, places)
            assert [x.dtype for x in seen] == [torch.bfloat16, torch.float32, *(x.dtype for x in given)]
            for index, (one, other) in enumerate(zip(seen, wanted, strict=True)):
                assert error(one, other) <= tolerances(level, len(given))[index], (shape, index)


@pytest.mark.parametrize("level", native.LEVELS)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_a_sequence_that_is_cut_anywhere_is_the_whole_as_far_as_bfloat16_goes(
    gated: bool, level: str | None, draw: Any
) -> None:
    given = sizes(draw, gated, 70, (2, 2, 19, 70))
    wanted, after = call(definition, [tensor.double() for tensor in given])
    for places in ((0, 1, 70), (0, 15, 16, 70), (0, 33, 64, 69, 70), range(71)):
        state, parts = given[-1], []
        with at_level(level):
            for begin, end in pairwise(places):
                y, state = call(delta, [*(x[:, begin:end] for x in given[:-1]), state])
                parts.append(y)
        allowed = tolerances(level, 0)
        assert error(torch.cat(parts, 1), wanted) <= allowed[0]
        assert error(state, after) <= allowed[1]


@pytest.mark.parametrize("level", native.LEVELS)
def test_what_is_not_a_number_stays_in_its_document_and_behind_its_place(level: str | None, draw: Any) -> None:
    given = sizes(draw, True, 50, (1, 2, 19, 70))
    starts = torch.zeros(1, 50, dtype=torch.bool)
    starts[0, 37] = True
    given[1][0, 20] = float("nan")
    with at_level(level):
        y, state = call(delta, given, starts)
    assert y[0, :20].isfinite().all()
    assert y[0, 20:37].isnan().any(-1).all()
    assert y[0, 37:].isfinite().all()
    assert state.isfinite().all()


@pytest.mark.parametrize("level", native.LEVELS)
@pytest.mark.parametrize("part", [0, 1], ids=["output", "state"])
def test_a_loss_of_the_output_or_of_the_state_alone_has_its_gradient(part: int, level: str | None, draw: Any) -> None:
    given = [tensor.float().requires_grad_() for tensor in sizes(draw, True, 21, (2, 2, 6, 6))]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    gradients = partial(torch.autograd.grad, allow_unused=True, materialize_grads=True)
    wanted = gradients(call(definition, exact)[part].sum(), exact)
    with at_level(level):
        seen = gradients(call(delta, given)[part].sum(), given)
    assert all(error(one, other) <= SINGLE for one, other in zip(seen, wanted, strict=True))


@pytest.mark.parametrize("level", native.LEVELS)
def test_the_same_bits_come_twice_from_bfloat16_inputs(level: str | None, draw: Any) -> None:
    given = sizes(draw, True, 37, (2, 2, 19, 70))
    with at_level(level):
        first, second = (everything(delta, given) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_registered_op_is_sound_for_bfloat16_inputs(draw: Any) -> None:
    given = [tensor.requires_grad_() for tensor in sizes(draw, True, 19, (2, 2, 6, 5))]
    with at_level("portable"):
        result = torch.library.opcheck(torch.ops.fairway.delta.default, (*given, None))
    assert set(result.values()) == {"SUCCESS"}
