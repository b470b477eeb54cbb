"""The fast form of every op is its naive definition: outputs, final states, every gradient."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator

Tensors = tuple[Tensor, ...]
TOLERANCE = 1e-9


def starts_of(batch: int, length: int) -> Tensor:
    return torch.rand(batch, length, generator=generator(0, "starts")) < 0.2


def leaves(tensors: Tensors) -> Tensors:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


def close(first: Tensor, second: Tensor, tolerance: float = TOLERANCE) -> None:
    assert first.shape == second.shape
    assert first.dtype == second.dtype
    scale = max(1.0, float(second.abs().max())) if second.numel() else 1.0
    assert torch.isfinite(first).all()
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance * scale)


def run_with_gradients(
    call: Any, inputs: Tensors, weights: Tensors, state: Tensors, starts: Tensor | None, **more: int
) -> Tensors:
    """Output, final state, and the gradient of a fixed weighting of all of them by every argument."""
    inputs, weights, state = leaves(inputs), leaves(weights), leaves(state)
    results = call(inputs, weights, state, starts, **more)
    outputs = [results[0], *(after for after in results[1] if after.requires_grad)]
    source = generator(0, "weighting")
    weights_of = [torch.randint(-8, 9, x.shape, generator=source) for x in outputs]  # exact in every format
    loss = torch.stack([(x.double() * weight).sum() for x, weight in zip(outputs, weights_of, strict=True)]).sum()
    arguments = [*inputs, *weights, *state]
    gradients = torch.autograd.grad(loss, arguments, allow_unused=True, materialize_grads=True)
    return (results[0].detach(), *(after.detach() for after in results[1]), *gradients)


def compared(op: Any, draw: Any, batch: int, length: int, *, starts: bool = False, **more: int) -> None:
    inputs, weights, state = op.sizes(draw, batch, length)
    where = starts_of(batch, length) if starts else None
    slow = run_with_gradients(op.naive, inputs, weights, state, where)
    fast = run_with_gradients(op.chunk, inputs, weights, state, where, **more)
    for one, other in zip(fast, slow, strict=True):
        close(one, other)


@pytest.mark.parametrize(("batch", "length"), [(2, 37), (1, 16), (3, 1)])
def test_outputs_states_and_gradients_are_those_of_the_definition(op: Any, draw: Any, batch: int, length: int) -> None:
    compared(op, draw, batch, length)


@pytest.mark.parametrize("chunk", [1, 2, 8, 64])
def test_the_chunk_size_does_not_matter(op: Any, draw: Any, chunk: int) -> None:
    if op.chunks:
        compared(op, draw, 2, 29, chunk=chunk)


def test_documents_do_not_see_each_other_in_either_form(op: Any, draw: Any) -> None:
    if not op.documents:
        return
    compared(op, draw, 2, 37, starts=True)
    compared(op, draw, 2, 5, starts=True)
    inputs, weights, state = op.sizes(draw, 1, 20)
    begin = torch.zeros(1, 20, dtype=torch.bool)
    begin[:, 12] = True
    joint, joint_state = op.chunk(inputs, weights, state, begin)
    alone, alone_state = op.chunk(tuple(x[:, 12:] for x in inputs), weights, None, None)
    close(joint[:, 12:], alone)
    for one, other in zip(joint_state, alone_state, strict=True):
        close(one, other)


def test_no_token_at_all_leaves_the_state_as_it_was(op: Any, draw: Any) -> None:
    inputs, weights, state = op.sizes(draw, 2, 0)
    for call in (op.naive, op.chunk):
        output, after = call(inputs, weights, state, None)
        assert output.shape[:2] == (2, 0)
        for one, other in zip(after, state, strict=True):
            assert torch.equal(one, other)


def test_without_a_state_it_begins_from_the_same_empty_one(op: Any, draw: Any) -> None:
    if not op.documents:
        return
    inputs, weights, _ = op.sizes(draw, 2, 11)
    slow, fast = op.naive(inputs, weights, None, None), op.chunk(inputs, weights, None, None)
    close(fast[0], slow[0])
    for one, other in zip(fast[1], slow[1], strict=True):
        close(one, other)


def test_gradcheck_of_the_fast_form(op: Any, draw: Any) -> None:
    inputs, weights, state = op.sizes(draw, 1, 4)
    more = {"chunk": 2} if op.chunks else {}

    def output(*arguments: Tensor) -> Tensor:
        return op.chunk(arguments[: len(inputs)], arguments[len(inputs) :], state, None, **more)[0]

    assert torch.autograd.gradcheck(output, (*leaves(inputs), *leaves(weights)), fast_mode=True)


HALF, SINGLE = 2**-8, 2e-5
"""Relative errors, as norms, of what a path gives back in bfloat16, a rounding, and of what it keeps in float32."""


def test_bfloat16_inputs_give_the_definitions_results_within_a_rounding_and_keep_a_float32_state(
    op: Any, draw: Any
) -> None:
    inputs, weights, state = op.sizes(draw, 2, 33)
    half = tuple(x.bfloat16() for x in inputs)
    narrow = tuple(x.float() for x in weights), tuple(x.float() for x in state)
    wide = [tuple(x.double() for x in part) for part in (half, *narrow)]
    exact = run_with_gradients(op.naive, wide[0], wide[1], wide[2], None)
    seen = run_with_gradients(torch.autocast("cpu", torch.bfloat16)(op.chunk), half, *narrow, None)
    count = 1 + len(state) + len(inputs)
    assert [x.dtype for x in seen[:count]] == [torch.bfloat16, *[torch.float32] * len(state), *[x.dtype for x in half]]
    for index, (one, other) in enumerate(zip(seen, exact, strict=True)):
        error = float((one.double() - other).norm() / other.norm().clamp_min(1e-6))
        assert error < (HALF if one.dtype == torch.bfloat16 else SINGLE), index


def test_sixteen_thousand_steps_neither_overflow_nor_drift_in_float32(op: Any, draw: Any) -> None:
    inputs, weights, carried = op.sizes(draw, 1, 16_384)
    state = None if op.documents else carried
    exact, exact_state = op.chunk(inputs, weights, state, None)
    single = [None if part is None else tuple(x.float() for x in part) for part in (inputs, weights, state)]
    output, after = op.chunk(*single, None)
    for one, other in zip((output, *after), (exact, *exact_state), strict=True):
        close(one.double(), other, 1e-4)


@pytest.mark.parametrize(
    "name", ["selective_scan_euler", "ssd", "retention", "gla", "linear_attention", "gated_delta", "wkv4"]
)
def test_what_is_kept_for_the_backward_pass_grows_no_faster_than_the_length(name: str, ops: Any, draw: Any) -> None:
    def kept(length: int) -> int:
        inputs, weights, _ = (leaves(tensors) for tensors in ops[name].sizes(draw, 1, length))
        held: dict[int, Tensor] = {}  # alive, so that no address comes twice

        def note(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            result = ops[name].chunk(inputs, weights, None, None)
        assert result[0].requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in held.values())

    assert kept(2048) < 4.2 * kept(512)


def without_state(call: Any, inputs: Tensors, weights: Tensors, state: Tensors, starts: Any) -> tuple[Tensor, Tensors]:
    return call(inputs, weights, tuple(torch.zeros_like(x) for x in state), starts)


def without_remainder(
    call: Any, inputs: Tensors, weights: Tensors, state: Tensors, starts: Any
) -> tuple[Tensor, Tensors]:
    output, _ = call(inputs, weights, state, starts)
    return output, call(tuple(x[:, : x.shape[1] // 5 * 5] for x in inputs), weights, state, starts)[1]


def with_the_future(
    call: Any, inputs: Tensors, weights: Tensors, state: Tensors, starts: Any
) -> tuple[Tensor, Tensors]:
    return call(tuple(x + 1e-6 * x.roll(-1, 1) for x in inputs), weights, state, starts)


def with_a_rounded_state(
    call: Any, inputs: Tensors, weights: Tensors, state: Tensors, starts: Any
) -> tuple[Tensor, Tensors]:
    output, after = call(inputs, weights, state, starts)
    return output, tuple(x.bfloat16().to(x.dtype) for x in after)


@pytest.mark.parametrize("fault", [without_state, without_remainder, with_the_future, with_a_rounded_state])
def test_the_comparison_notices_planted_faults(op: Any, draw: Any, fault: Any) -> None:
    broken = replace(op, chunk=lambda *arguments: fault(op.chunk, *arguments))
    with pytest.raises(AssertionError):
        compared(broken, draw, 2, 38)


def decayed(name: str, call: Any, side: float, given: tuple[Tensors, Tensors, Tensors], starts: Any) -> Any:
    """An op whose writes decay with what they are added to, if `side` is 1, or not, if 0."""
    inputs, weights, state = given
    if name == "wkv4":
        return call(inputs, (weights[0], weights[1] - side * weights[0]), state, starts)
    if name == "gated_delta":
        *others, log_decay = inputs
        return call((*others, log_decay.roll(int(side), 1)), weights, state, starts)
    if name in ("gla", "retention"):
        q, k, v, *decay = inputs
        log_decay = decay[0] if decay else weights[0].unsqueeze(-1)
        return call((q, k * (side * log_decay).exp(), v, *decay), weights, state, starts)
    (x, delta, B, C), (A, D) = inputs, weights
    if name == "ssd":
        y, after = call((x * (side * delta * A).exp().unsqueeze(-1), delta, B, C), (A, 0 * D), state, starts)
        return y + D.unsqueeze(-1) * x, after
    alone = [
        call((x * (side * delta * a).exp(), delta, b, c), (a.unsqueeze(-1), 0 * D), (h.unsqueeze(-1),), starts)
        for a, b, c, h in zip(
            A.unbind(-1), B.split(1, -1), C.split(1, -1), state[0].unbind(-1), strict=True
        )
    ]  # fmt: skip
    y = torch.stack([one for one, _ in alone]).sum(0) + D * x
    return y, (torch.cat([after for _, (after,) in alone], -1),)


@pytest.mark.parametrize("name", ["selective_scan_euler", "selective_scan_zoh", "ssd", "retention", "gla",
                                  "gated_delta", "wkv4"])  # fmt: skip
def test_a_decay_on_the_wrong_side_of_the_write_is_noticed(name: str, ops: Any, draw: Any) -> None:
    def made(side: float) -> Any:
        return replace(ops[name], chunk=lambda *given: decayed(name, ops[name].chunk, side, given[:3], given[3]))

    compared(made(0.0), draw, 2, 9)
    with pytest.raises(AssertionError):
        compared(made(1.0), draw, 2, 9)
