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
    loss = torch.stack([(x * torch.randn(x.shape, generator=source, dtype=x.dtype)).sum() for x in outputs]).sum()
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


def test_half_precision_inputs_keep_a_float32_state(op: Any, draw: Any) -> None:
    inputs, weights, state = op.sizes(draw, 2, 33)
    half = tuple(x.bfloat16() for x in inputs)
    narrow = tuple(x.float() for x in weights), tuple(x.float() for x in state)
    exact, exact_state = op.chunk(tuple(x.double() for x in half), weights, state, None)
    with torch.autocast("cpu", torch.bfloat16):
        output, after = op.chunk(half, *narrow, None)
    assert output.dtype == torch.bfloat16
    assert all(x.dtype == torch.float32 for x in after)
    for one, other in zip(after, exact_state, strict=True):
        close(one.double(), other, 2e-5)
    close(output.double(), exact, 2**-8)


@pytest.mark.parametrize(
    "name", ["selective_scan_euler", "ssd", "retention", "gla", "linear_attention", "gated_delta", "wkv4"]
)
def test_sixteen_thousand_steps_neither_overflow_nor_drift_in_float32(name: str, ops: Any, draw: Any) -> None:
    inputs, weights, _ = ops[name].sizes(draw, 1, 16_384)
    exact, exact_state = ops[name].chunk(inputs, weights, None, None)
    single = tuple(tuple(x.float() for x in tensors) for tensors in (inputs, weights))
    output, after = ops[name].chunk(*single, None, None)
    for one, other in zip((output, *after), (exact, *exact_state), strict=True):
        close(one.double(), other, 1e-4)


@pytest.mark.parametrize(
    "name", ["selective_scan_euler", "ssd", "retention", "gla", "linear_attention", "gated_delta", "wkv4"]
)
def test_what_is_kept_for_the_backward_pass_grows_no_faster_than_the_length(name: str, ops: Any, draw: Any) -> None:
    def kept(length: int) -> int:
        inputs, weights, _ = (leaves(tensors) for tensors in ops[name].sizes(draw, 1, length))
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            result = ops[name].chunk(inputs, weights, None, None)
        assert result[0].requires_grad
        return sum(sizes.values())

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


@pytest.mark.parametrize("name", ["gla", "gated_delta", "wkv4"])
def test_a_decay_on_the_wrong_side_of_the_write_is_noticed(name: str, ops: Any, draw: Any) -> None:
    def late(inputs: Tensors, weights: Tensors, state: Tensors, starts: Any) -> tuple[Tensor, Tensors]:
        if name == "wkv4":
            return ops[name].chunk(inputs, (weights[0], weights[1] - weights[0]), state, starts)
        *others, log_decay = inputs
        return ops[name].chunk((*others, log_decay.roll(1, 1)), weights, state, starts)

    with pytest.raises(AssertionError):
        compared(replace(ops[name], chunk=late), draw, 2, 9)
