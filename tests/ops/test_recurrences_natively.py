"""The native kernels of the recurrences against their definitions: outputs, states, every gradient, on each level."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core import native
from fairway.core.seed import generator
from fairway.ops.delta import fastest as delta
from fairway.ops.gla import fastest as gla
from fairway.ops.retention import fastest as retention
from fairway.ops.selective_scan import fastest as scan
from fairway.ops.ssd import fastest as ssd
from laws.levels import EVERY_LEVEL, at_level

Tensors = tuple[Tensor, ...]
Results = list[Tensor]


def _scan(discretisation: Any) -> Callable[..., tuple[Tensor, Tensors]]:
    def call(inputs: Tensors, weights: Tensors, state: Tensors | None, starts: Tensor | None) -> tuple[Tensor, Tensors]:
        (x, delta, B, C), (A, D) = inputs, weights
        y, after = scan.selective_scan(x, delta, A, B, C, D, state[0] if state else None, starts, discretisation)
        return y, (after,)

    return call


def _plain(function: Any) -> Callable[..., tuple[Tensor, Tensors]]:
    def call(inputs: Tensors, weights: Tensors, state: Tensors | None, starts: Tensor | None) -> tuple[Tensor, Tensors]:
        y, after = function(*inputs, *weights, state[0] if state else None, starts)
        return y, (after,)

    return call


def _delta(
    inputs: Tensors, weights: Tensors, state: Tensors | None, starts: Tensor | None
) -> tuple[Tensor, Tensors]:
    assert not weights
    y, after = delta.delta(*inputs, None, state[0] if state else None, starts)
    return y, (after,)


def _ssd(inputs: Tensors, weights: Tensors, state: Tensors | None, starts: Tensor | None) -> tuple[Tensor, Tensors]:
    (x, delta, B, C), (A, D) = inputs, weights
    y, after = ssd.ssd(x, delta, A, B, C, D, state[0] if state else None, starts)
    return y, (after,)


FASTEST: dict[str, Callable[..., tuple[Tensor, Tensors]]] = {
    "selective_scan_euler": _scan("euler"),
    "selective_scan_zoh": _scan("zoh"),
    "gla": _plain(gla.gla),
    "retention": _plain(retention.retention),
    "ssd": _ssd,
    "delta": _delta,
    "gated_delta": _plain(delta.delta),
}


def widths(name: str, draw: Any, batch: int, length: int) -> tuple[Tensors, Tensors, Tensors]:
    """Sizes that fill no vector, and several."""
    if name.startswith("selective_scan"):
        x, delta = draw(batch, length, 37), draw(batch, length, 37).exp() / 4
        inputs = (x, delta, draw(batch, length, 5), draw(batch, length, 5))
        return inputs, (-draw(37, 5).exp(), draw(37)), (draw(batch, 37, 5),)
    if name == "ssd":
        x, delta = draw(batch, length, 6, 70), draw(batch, length, 6).exp() / 4
        inputs = (x, delta, draw(batch, length, 2, 9), draw(batch, length, 2, 9))
        return inputs, (-draw(6).exp(), draw(6)), (draw(batch, 6, 9, 70),)
    if name in ("delta", "gated_delta"):
        q, k, v = draw(batch, length, 2, 19), draw(batch, length, 2, 19), draw(batch, length, 2, 70)
        strengths = draw(batch, length, 2).sigmoid(), functional.logsigmoid(draw(batch, length, 2))
        inputs = (q, functional.normalize(k, dim=-1), v, *strengths[: 1 if name == "delta" else 2])
        return inputs, (), (draw(batch, 2, 19, 70),)
    q, k, v = draw(batch, length, 2, 19), draw(batch, length, 2, 19), draw(batch, length, 2, 70)
    decays = (functional.logsigmoid(2 * draw(batch, length, 2, 19)),) if name == "gla" else ()
    weights = () if name == "gla" else (-draw(2).abs() / 4,)
    return (q, k, v, *decays), weights, (draw(batch, 2, 19, 70),)


def everything(
    call: Any, dtype: torch.dtype, given: tuple[Tensors, Tensors, Tensors], starts: Tensor | None
) -> Results:
    """Output, states, and the gradient of a fixed weighting of them by every argument."""
    leaves = [tuple(x.detach().to(dtype).requires_grad_() for x in tensors) for tensors in given]
    output, after = call(*leaves, starts)
    results = [output, *after]
    source = generator(0, "weighting")
    up = [torch.randn(x.shape, generator=source, dtype=torch.float64).to(dtype) for x in results]
    arguments = [x for tensors in leaves for x in tensors]
    loss = torch.stack([(x * weight).sum() for x, weight in zip(results, up, strict=True)]).sum()
    gradients = torch.autograd.grad(loss, arguments, allow_unused=True, materialize_grads=True)
    return [x.detach() for x in (*results, *gradients)]


def close(seen: Results, wanted: Results, error: float = 2e-5) -> None:
    for index, (one, other) in enumerate(zip(seen, wanted, strict=True)):
        assert one.shape == other.shape
        assert torch.isfinite(one).all()
        assert (one.double() - other).norm() <= error * other.norm().clamp_min(1e-6), index


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("length", [0, 1, 16, 32, 71])
@pytest.mark.parametrize("name", FASTEST)
def test_every_level_gives_what_the_definition_gives(
    name: str, length: int, level: str | None, ops: Any, draw: Any
) -> None:
    for sizes in (ops[name].sizes(draw, 2, length), widths(name, draw, 3, length)):
        wanted = everything(ops[name].naive, torch.float64, sizes, None)
        with at_level(level):
            close(everything(FASTEST[name], torch.float32, sizes, None), wanted)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("name", FASTEST)
def test_documents_do_not_see_each_other(name: str, level: str | None, ops: Any, draw: Any) -> None:
    starts = torch.rand(2, 37, generator=generator(0, "starts")) < 0.2
    sizes = widths(name, draw, 2, 37)
    wanted = everything(ops[name].naive, torch.float64, sizes, starts)
    with at_level(level):
        close(everything(FASTEST[name], torch.float32, sizes, starts), wanted)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("name", FASTEST)
def test_two_halves_with_the_state_between_are_the_whole(name: str, level: str | None, draw: Any) -> None:
    inputs, weights, state = (tuple(x.float() for x in part) for part in widths(name, draw, 2, 23))
    with at_level(level):
        whole, after = FASTEST[name](inputs, weights, state, None)
        first, middle = FASTEST[name](tuple(x[:, :9] for x in inputs), weights, state, None)
        second, last = FASTEST[name](tuple(x[:, 9:] for x in inputs), weights, middle, None)
    close([torch.cat((first, second), 1), *last], [whole.double(), *(x.double() for x in after)], 1e-6)


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("name", FASTEST)
def test_the_same_threads_give_the_same_bits(name: str, level: str | None, draw: Any) -> None:
    sizes = widths(name, draw, 2, 37)
    with at_level(level):
        runs = [everything(FASTEST[name], torch.float32, sizes, None) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("level", native.LEVELS)
@pytest.mark.parametrize("name", FASTEST)
def test_what_is_not_a_number_reaches_all_that_follows_and_nothing_before(
    name: str, level: str | None, draw: Any
) -> None:
    inputs, weights, state = (tuple(x.float() for x in part) for part in widths(name, draw, 1, 37))
    inputs[2 if name == "ssd" else 1][0, 20] = float("nan")
    with at_level(level):
        output, after = FASTEST[name](inputs, weights, state, None)
    assert output[0, :20].isfinite().all()
    assert output[0, 20:].flatten(1).isnan().any(1).all()
    assert any(x.isnan().any() for x in after)


@pytest.mark.parametrize("name", FASTEST)
def test_sixteen_thousand_steps_neither_overflow_nor_drift(name: str, ops: Any, draw: Any) -> None:
    inputs, weights, _ = ops[name].sizes(draw, 1, 16_384)
    exact, exact_state = ops[name].chunk(inputs, weights, None, None)
    with at_level("portable"):
        output, after = FASTEST[name](tuple(x.float() for x in inputs), tuple(x.float() for x in weights), None, None)
    close([output, *after], [exact, *exact_state], 1e-5)


def test_the_registered_ops_are_differentiable_and_have_fakes(draw: Any) -> None:
    with at_level("portable"):
        (x, delta, B, C), (A, D), (state,) = (
            tuple(part.float().requires_grad_() for part in parts) for parts in widths("selective_scan", draw, 2, 19)
        )
        starts = torch.zeros(2, 19, dtype=torch.bool)
        op = torch.ops.fairway.selective_scan_native.default
        given = ((x, delta, A, B, C, D, state, starts, True), (x, delta, A, B, C, None, state, None, False))
        results = [torch.library.opcheck(op, arguments) for arguments in given]
        (q, k, v, g), _, (state,) = (
            tuple(part.float().requires_grad_() for part in parts) for parts in widths("gla", draw, 2, 19)
        )
        results += [torch.library.opcheck(torch.ops.fairway.gla.default, (q, k, v, g, state, starts))]
    assert all(set(result.values()) == {"SUCCESS"} for result in results)
