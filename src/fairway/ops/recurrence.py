"""The first-order linear recurrence every state-space op rests on, with its own backward pass.

`h_t = a_t .* h_(t-1) + b_t`. Backward: `g_t = dL/dh_t + a_(t+1) .* g_(t+1)`, `db_t = g_t`,
`da_t = g_t .* h_(t-1)`. One fused multiply-add per step; everything else a caller does stays parallel over
time. Both directions are PyTorch operators (`fairway::recurrence`), so a compiler sees one node and not a loop.
"""

from typing import Any

import torch
from torch import Tensor


def recurrence(decay: Tensor, write: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """States after each step, (T, ...), and the final state, (...); T may be 0.

    `write` is (T, ...), `decay` broadcasts to it (its first dimension is T), `initial` is (...).
    """
    return _forward(decay, write, initial)


def states_before(after: Tensor, initial: Tensor) -> Tensor:
    """The state each step starts from, given the states after each step."""
    return torch.cat([initial.unsqueeze(0), after])[:-1]


def initial_state(state: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    """The given state, or zeros of `shape` with the dtype and device of `like` where there is none."""
    return like.new_zeros(shape) if state is None else state


@torch.library.custom_op("fairway::recurrence", mutates_args=())
def _forward(decay: Tensor, write: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    write = write.contiguous()
    after = torch.empty_like(write)
    state = initial
    for a, b, h in zip(decay.unbind(0), write.unbind(0), after.unbind(0), strict=True):
        state = torch.addcmul(b, a, state, out=h)
    return after, state.clone(memory_format=torch.contiguous_format)


@_forward.register_fake
def _(decay: Tensor, write: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return (
        torch.empty_like(write, memory_format=torch.contiguous_format),
        torch.empty_like(initial, memory_format=torch.contiguous_format),
    )


@torch.library.custom_op("fairway::recurrence_backward", mutates_args=())
def _backward(
    decay: Tensor, initial: Tensor, after: Tensor, grad_after: Tensor, grad_final: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by decay (summed to its shape), write and initial state."""
    grad = torch.empty_like(after)
    if len(after) == 0:
        return torch.zeros_like(decay), grad, grad_final.clone(memory_format=torch.contiguous_format)
    decays, flows, given = decay.unbind(0), grad.unbind(0), grad_after.unbind(0)
    torch.add(given[-1], grad_final, out=flows[-1])
    for t in range(len(flows) - 2, -1, -1):
        torch.addcmul(given[t], decays[t + 1], flows[t + 1], out=flows[t])
    grad_decay = torch.empty_like(after)
    torch.mul(grad[0], initial, out=grad_decay[0])
    torch.mul(grad[1:], after[:-1], out=grad_decay[1:])
    if decay.shape != after.shape:
        grad_decay = grad_decay.sum_to_size(decay.shape)
    return grad_decay, grad, decays[0] * flows[0]


@_backward.register_fake
def _(
    decay: Tensor,
    initial: Tensor,
    after: Tensor,
    grad_after: Tensor,  # noqa: ARG001
    grad_final: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    kept = torch.contiguous_format
    return (
        torch.empty_like(decay, memory_format=kept),
        torch.empty_like(after),
        torch.empty_like(initial, memory_format=kept),
    )


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    decay, _, initial = inputs
    ctx.save_for_backward(decay, initial, output[0])


def _differentiate(ctx: Any, grad_after: Tensor | None, grad_final: Tensor | None) -> tuple[Tensor, ...]:
    decay, initial, after = ctx.saved_tensors
    grad_after = torch.zeros_like(after) if grad_after is None else grad_after
    grad_final = torch.zeros_like(initial) if grad_final is None else grad_final
    return _backward(decay, initial, after, grad_after, grad_final)


torch.library.register_autograd("fairway::recurrence", _differentiate, setup_context=_save)
