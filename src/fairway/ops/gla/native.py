"""Gated linear attention by the native kernel, registered with torch so that autograd sees one op.

It keeps the state at the start of every span of 32 tokens and computes the others again for the gradients. See
`naive.py` for the definition. Shape key: B batch, T time, H heads, K key width, V value width, S spans.
"""

from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, longs, pointer

SPAN = 32


def gla(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTHK: Tensor,
    state_BHKV: Tensor,
    starts_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The same as `naive.gla` for float32 on the CPU."""
    inputs = (tensor.contiguous() for tensor in (q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK, state_BHKV))
    y_BTHV, final, _ = _forward(*inputs, None if starts_BT is None else starts_BT.contiguous())
    return y_BTHV, final


@torch.library.custom_op("fairway::gla", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the final state, and the state at the start of each span (B, H, S, K, V)."""
    y, last, firsts = torch.empty_like(v), torch.empty_like(state), _firsts(v, state)
    given = (q, k, v, log_decay, state, starts)
    kernel("gla_forward")(*map(pointer, given), *map(pointer, (y, last, firsts)), _sizes(q, v))
    return y, last, firsts


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(v), torch.empty_like(state), _firsts(v, state)


@torch.library.custom_op("fairway::gla_backward", mutates_args=())
def _backward(
    grad_y: Tensor, grad_last: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, firsts: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by q, k, v, the logarithms of the decays and the carried state."""
    by_q, by_k, by_v, by_decay = (torch.empty_like(tensor) for tensor in (q, k, v, log_decay))
    by_state = grad_last.new_empty(grad_last.shape)
    given = (grad_y.contiguous(), grad_last.contiguous(), q, k, v, log_decay, firsts, starts)
    kernel("gla_backward")(
        *map(pointer, given), *map(pointer, (by_q, by_k, by_v, by_decay, by_state)), _sizes(q, v)
    )  # fmt: skip
    return by_q, by_k, by_v, by_decay, by_state


@_backward.register_fake
def _(
    grad_y: Tensor, grad_last: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, firsts: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    by_q, by_k, by_v, by_decay = (torch.empty_like(tensor) for tensor in (q, k, v, log_decay))
    return by_q, by_k, by_v, by_decay, grad_last.new_empty(grad_last.shape)


def _firsts(v: Tensor, state: Tensor) -> Tensor:
    batch, length, heads, width = v.shape
    return v.new_empty(batch, heads, -(-length // SPAN), state.shape[2], width)


def _sizes(q: Tensor, v: Tensor) -> Any:
    return longs(*q.shape, v.shape[3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, log_decay, _, starts = inputs
    ctx.save_for_backward(q, k, v, log_decay, output[2], starts)


def _differentiate(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(grad_y, grad_last, *ctx.saved_tensors), None)


_forward.register_autograd(_differentiate, setup_context=_save)
