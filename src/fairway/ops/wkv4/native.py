"""The weighted key-value average of RWKV-4 by the native kernel, registered with torch so that autograd sees one op.

It keeps the sums at the start of every span of 32 tokens and computes the others again for the gradients. The maximum
is a constant to all gradients. See `naive.py` for the definition.
Shape key: B batch, T time, D channels, S spans.
"""

from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, longs, pointer
from fairway.ops.wkv4.naive import Triple

SPAN = 32


def wkv4(
    k_BTD: Tensor, v_BTD: Tensor, w_D: Tensor, u_D: Tensor, state: Triple, starts_BT: Tensor | None
) -> tuple[Tensor, Triple]:
    """The same as `naive.wkv4` for float32 on the CPU."""
    inputs = (tensor.contiguous() for tensor in (k_BTD, v_BTD, w_D, u_D, *state))
    y_BTD, *after, _ = _forward(*inputs, None if starts_BT is None else starts_BT.contiguous())
    numerator_BD, denominator_BD, maximum_BD = after
    return y_BTD, (numerator_BD, denominator_BD, maximum_BD.detach())


@torch.library.custom_op("fairway::wkv4", mutates_args=())
def _forward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, numerator: Tensor, denominator: Tensor, maximum: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Outputs, the final sums, and the sums at the start of each span (B, S, 3, D)."""
    outputs = _outputs(v, maximum)
    given = (k, v, w, u, numerator, denominator, maximum, starts)
    kernel("wkv4_forward")(*map(pointer, given), *map(pointer, outputs), longs(*k.shape))
    return outputs


@_forward.register_fake
def _(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, numerator: Tensor, denominator: Tensor, maximum: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _outputs(v, maximum)


@torch.library.custom_op("fairway::wkv4_backward", mutates_args=())
def _backward(
    grad_y: Tensor, grad_numerator: Tensor, grad_denominator: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor,
    firsts: Tensor, starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by k, v, w, u, and the carried numerator and denominator."""
    by_k, by_v = torch.empty_like(k), torch.empty_like(v)
    by_w, by_u, by_numerator, by_denominator = (k.new_empty(k.shape[0], k.shape[2]) for _ in range(4))
    upstream = tuple(grad.contiguous() for grad in (grad_y, grad_numerator, grad_denominator))
    found = (by_k, by_v, by_w, by_u, by_numerator, by_denominator)
    kernel("wkv4_backward")(
        *map(pointer, upstream), *map(pointer, (k, v, w, u, firsts, starts)), *map(pointer, found), longs(*k.shape)
    )  # fmt: skip
    return by_k, by_v, by_w.sum(0), by_u.sum(0), by_numerator, by_denominator


@_backward.register_fake
def _(
    grad_y: Tensor, grad_numerator: Tensor, grad_denominator: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor,
    firsts: Tensor, starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    by_numerator, by_denominator = (grad.new_empty(grad.shape) for grad in (grad_numerator, grad_denominator))
    by_k, by_v, by_w, by_u = (torch.empty_like(tensor) for tensor in (k, v, w, u))
    return by_k, by_v, by_w, by_u, by_numerator, by_denominator


def _outputs(v: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, width = v.shape
    firsts = v.new_empty(batch, -(-length // SPAN), 3, width)
    numerator, denominator, after = (torch.empty_like(maximum) for _ in range(3))
    return torch.empty_like(v), numerator, denominator, after, firsts


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> None:
    k, v, w, u, _, _, _, starts = inputs
    ctx.save_for_backward(k, v, w, u, output[4], starts)


def _differentiate(ctx: Any, grad_y: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad_y, grads[0], grads[1], *ctx.saved_tensors), None, None


_forward.register_autograd(_differentiate, setup_context=_save)
