"""The first-order linear recurrence every state-space op rests on, with its own backward pass.

`h_t = a_t .* h_(t-1) + b_t`. Backward: `g_t = dL/dh_t + a_(t+1) .* g_(t+1)`, `db_t = g_t`, `da_t = g_t .*
h_(t-1)`. One fused multiply-add per step; everything else a caller does stays parallel over time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def recurrence(decay: Tensor, write: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """States after each step, (T, ...), and the final state, (...); T may be 0.

    `write` is (T, ...), `decay` broadcasts to it (its first dimension is T), `initial` is (...).
    """
    return _Recurrence.apply(decay, write, initial)  # pyrefly: ignore[bad-return]


def states_before(after: Tensor, initial: Tensor) -> Tensor:
    """The state each step starts from, given the states after each step."""
    return torch.cat([initial.unsqueeze(0), after])[:-1]


def initial_state(state: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    """The given state, or zeros of `shape` with the dtype and device of `like` where there is none."""
    return like.new_zeros(shape) if state is None else state


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, write: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        write = write.contiguous()
        after = torch.empty_like(write)
        state = initial
        for a, b, h in zip(decay.unbind(0), write.unbind(0), after.unbind(0), strict=True):
            state = torch.addcmul(b, a, state, out=h)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(decay, initial, after)
        return after, state.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        grad_after, grad_final = grad_outputs
        decay, initial, after = ctx.saved_tensors
        if len(after) == 0:
            return None, None, grad_final
        given = torch.zeros_like(after) if grad_after is None else grad_after
        grad = torch.empty_like(after)
        decays, flows = decay.unbind(0), grad.unbind(0)
        if grad_final is None:
            flows[-1].copy_(given[-1])
        else:
            torch.add(given[-1], grad_final, out=flows[-1])
        for t in range(len(flows) - 2, -1, -1):
            torch.addcmul(given[t], decays[t + 1], flows[t + 1], out=flows[t])
        grad_decay = None
        if ctx.needs_input_grad[0]:
            grad_decay = torch.empty_like(after)
            torch.mul(grad[0], initial, out=grad_decay[0])
            torch.mul(grad[1:], after[:-1], out=grad_decay[1:])
            grad_decay = grad_decay.sum_to_size(decay.shape)
        return grad_decay, grad, decays[0] * flows[0]
