"""The native kernels of the recurrences against their definitions: outputs, states, every gradient, on each level."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fairway.core import native
from fairway.core.seed import generator
from fairway.ops.delta import fastest as delta
from fairway.ops.gla import fastest as gla
from fairway.ops.linear_attention import fastest as linear
from fairway.ops.retention import fastest as retention
from fairway.ops.selective_scan import fastest as scan
from fairway.ops.ssd import fastest as ssd
from fairway.ops.ttt import fastest as ttt
from fairway.ops.ttt.inner import Carried
from fairway.ops.wkv4 import fastest as wkv4
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


def _delta(inputs: Tensors, weights: Tensors, state: Tensors | None, starts: Tensor | None) -> tuple[Tensor, Tensors]:
    assert not weights
    q, k, v, beta = inputs
    y, after = delta.delta(q, k, v, beta, None, state[0] if state else None, starts)
    return y, (after,)


def _several(function: Any) -> Callable[..., tuple[Tensor, Tensors]]:
    def call(inputs: Tensors, weights: Tensors, state: Tensors | None, starts: Tensor | None) -> tuple[Tensor, Tensors]:
        return function(*inputs, *weights, state, starts)

    return call


def _ttt(inputs: Tensors, weights: Tensors, state: Tensors, starts: Tensor | None) -> tuple[Tensor, Tensors]:
    """The carried state is that behind two tokens of a mini-batch."""
    assert starts is None
    (q, k, v, rate), (token_rate, gain, shift) = inputs, weights
    y, after = ttt.ttt(q, k, v, rate, token_rate, gain, shift, Carried(state[:2], state[2:], 2))
    return y, (*after.weights, *after.sums)


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
    "linear_attention": _several(linear.linear_attention),
    "wkv4": _several(wkv4.wkv4),
    "ttt_linear": _ttt,
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
    if name == "wkv4":
        inputs = (3 * draw(batch, length, 37), draw(batch, length, 37))
        return inputs, (draw(37).exp(), draw(37)), (draw(batch, 37), draw(batch, 37).exp(), draw(batch, 37))
    if name == "ttt_linear":
        return _ttt_widths(draw, batch, length)
    q, k, v = draw(batch, length, 2, 19), draw(batch, length, 2, 19), draw(batch, length, 2, 70)
    state = (draw(batch, 2, 19, 70),)
    if name == "linear_attention":
        return (q, k, v), (), (*state, draw(batch, 2, 19).abs())
    if name in ("delta", "gated_delta"):
        strengths = draw(batch, length, 2).sigmoid(), functional.logsigmoid(draw(batch, length, 2))
        return (q, functional.normalize(k, dim=-1), v, *strengths[: 1 if name == "delta" else 2]), (), state
    decays = (functional.logsigmoid(2 * draw(batch, length, 2, 19)),) if name == "gla" else ()
    weights = () if name == "gla" else (-draw(2).abs() / 4,)
    return (q, k, v, *decays), weights, state


def _ttt_widths(draw: Any, batch: int, length: int) -> tuple[Tensors, Tensors, Tensors]:
    inputs = (*(draw(batch, length, 2, 20) for _ in range(3)), draw(batch, length, 2).sigmoid() / 20)
    token_rate = 1 / torch.arange(1, 6, dtype=torch.float64) + 0.1 * draw(5).abs()
    state = tuple(0.3 * draw(batch, 2, *shape) for shape in ((20, 20), (1, 20)) * 2)
    return inputs, (token_rate, 1 + 0.1 * draw(2, 20), 0.1 * draw(2, 20)), state


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
    if not ops[name].documents:
        pytest.skip("this op takes no document starts")
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
        first, middle = FASTEST[name](tuple(x[:, :10] for x in inputs), weights, state, None)
        second, last = FASTEST[name](tuple(x[:, 10:] for x in inputs), weights, middle, None)
    close([torch.cat((first, second), 1), *last], [whole.double(), *(x.double() for x in after)], 1e-6)


@pytest.mark.parametrize("name", FASTEST)
def test_a_forward_pass_that_is_computed_again_gives_the_same_gradients(name: str, draw: Any) -> None:
    """As `train/recompute` does; torch then lets a backward pass look at what was saved only once."""

    def again(*given: Any) -> Any:
        return checkpoint(FASTEST[name], *given, use_reentrant=False)

    sizes = widths(name, draw, 2, 37)
    wanted = everything(FASTEST[name], torch.float32, sizes, None)
    assert all(torch.equal(a, b) for a, b in zip(everything(again, torch.float32, sizes, None), wanted, strict=True))


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


@pytest.mark.parametrize("level", native.LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_a_number_stays_in_its_head(dtype: torch.dtype, level: str, draw: Any) -> None:
    inputs, weights, _ = widths("retention", draw, 2, 71)
    q, k, v = leaves = [x.to(dtype).requires_grad_() for x in inputs]
    with at_level(level):
        output, _ = retention.retention(q, k, v, weights[0].float())
        up = torch.ones_like(output)
        up[0, 40, 0] = float("nan")
        gradients = torch.autograd.grad(output, leaves, up)
    for gradient in gradients:
        assert gradient[0, :, 0].isnan().any()
        assert gradient[0, :, 1].isfinite().all()
        assert gradient[1].isfinite().all()


HALVES = ("ssd", "retention")


def of_halves(call: Any, dtype: torch.dtype, given: tuple[Tensors, Tensors, Tensors], starts: Tensor | None) -> Results:
    """As `everything`, of inputs and upstream gradients that bfloat16 holds: in float64, or with bfloat16 inputs."""
    rounded = tuple(tuple(x.bfloat16() for x in tensors) for tensors in given[:1])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    parts = ((dtype, *rounded), *((wide, tensors) for tensors in given[1:]))
    leaves = [tuple(x.detach().to(kind).requires_grad_() for x in tensors) for kind, tensors in parts]
    output, after = call(*leaves, starts)
    results = [output, *after]
    assert [x.dtype for x in results] == [dtype, *[wide] * len(after)]
    source = generator(0, "weighting")
    up = [torch.randn(x.shape, generator=source).bfloat16().to(x.dtype) for x in results]
    gradients = torch.autograd.grad(results, [x for tensors in leaves for x in tensors], up)
    return [x.detach() for x in (*results, *gradients)]


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize("length", [1, 16, 33, 71])
@pytest.mark.parametrize("name", HALVES)
def test_bfloat16_gives_what_the_definition_gives_within_a_few_roundings(
    name: str, length: int, level: str | None, ops: Any, draw: Any
) -> None:
    starts = torch.rand(3, length, generator=generator(0, "starts")) < 0.1
    for sizes, cut in ((ops[name].sizes(draw, 2, length), None), (widths(name, draw, 3, length), starts)):
        wanted = of_halves(ops[name].naive, torch.float64, sizes, cut)
        with at_level(level):
            seen = of_halves(FASTEST[name], torch.bfloat16, sizes, cut)
        close(seen, wanted, 1e-2)


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("cut", [1, 10, 32, 45])
def test_bfloat16_may_be_cut_anywhere(name: str, cut: int, draw: Any) -> None:
    inputs, weights, state = (tuple(x.float() for x in part) for part in widths(name, draw, 2, 71))
    halves = tuple(x.bfloat16() for x in inputs)
    whole, after = FASTEST[name](halves, weights, state, None)
    first, middle = FASTEST[name](tuple(x[:, :cut] for x in halves), weights, state, None)
    second, last = FASTEST[name](tuple(x[:, cut:] for x in halves), weights, middle, None)
    close([torch.cat((first, second), 1), *last], [whole.double(), *(x.double() for x in after)], 1e-2)


@pytest.mark.parametrize("name", FASTEST)
def test_sixteen_thousand_steps_neither_overflow_nor_drift(name: str, ops: Any, draw: Any) -> None:
    inputs, weights, carried = ops[name].sizes(draw, 1, 16_384)
    state = carried if name == "ttt_linear" else None
    exact, exact_state = ops[name].chunk(inputs, weights, state, None)
    narrow = [None if part is None else tuple(x.float() for x in part) for part in (inputs, weights, state)]
    with at_level("portable"):
        output, after = FASTEST[name](*narrow, None)
    close([output, *after], [exact, *exact_state], 1e-5)


@pytest.mark.parametrize("name", ["selective_scan", "gla", "delta", "wkv4", "ttt"])
def test_the_registered_ops_are_differentiable_and_have_fakes(name: str, draw: Any) -> None:
    sizes = widths({"ttt": "ttt_linear", "delta": "gated_delta"}.get(name, name), draw, 2, 19)
    inputs, weights, state = (tuple(x.float().requires_grad_() for x in part) for part in sizes)
    starts = torch.zeros(2, 19, dtype=torch.bool)
    given: dict[str, list[tuple[Any, ...]]] = {
        "gla": [(*inputs, *state, starts)],
        "delta": [(*inputs, *state, starts), (*inputs[:4], None, *state, None)],
        "wkv4": [(*inputs, *weights, *state, starts)],
    }
    if name == "selective_scan":
        (x, delta, B, C), (A, D) = inputs, weights
        given[name] = [(x, delta, A, B, C, D, *state, starts, True), (x, delta, A, B, C, None, *state, None, False)]
    if name == "ttt":
        rows = (torch.cat(part, 2).detach().requires_grad_() for part in (state[:2], state[2:]))
        given[name] = [(*inputs, *weights, *rows, 2)]
    op = getattr(torch.ops.fairway, "selective_scan_native" if name == "selective_scan" else name).default
    with at_level("portable"):
        results = [torch.library.opcheck(op, arguments) for arguments in given[name]]
    assert all(set(result.values()) == {"SUCCESS"} for result in results)


def test_threads_leave_each_others_channels_alone() -> None:
    source = generator(0, "threads")
    x, delta = torch.randn(1, 3, 2000, generator=source), torch.rand(1, 3, 2000, generator=source)
    A, state = -torch.rand(2000, 4, generator=source), torch.randn(1, 2000, 4, generator=source)
    B, C = torch.randn(2, 1, 3, 4, generator=source)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with at_level(native.level() or "portable"):
                found.append(scan.selective_scan(x, delta, A, B, C, None, state, None))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for result in found[1:] for one, other in zip(result, found[0], strict=True))
