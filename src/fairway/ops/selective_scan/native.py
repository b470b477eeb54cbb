"""The selective state space by the native kernel, registered with torch so that autograd sees one op.

The kernel keeps the state at the start of every span of 16 tokens and computes the others again for the gradients.
See `naive.py` for the definition. Shape key: B batch, T time, D channels, N state width, S spans, G groups of channels.
"""

from ctypes import c_int
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, longs, pointer

SPAN = 16


def selective_scan(
    x_BTD: Tensor,
    delta_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None,
    state_BDN: Tensor,
    starts_BT: Tensor | None,
    *,
    hold: bool,
) -> tuple[Tensor, Tensor]:
    """The same as `naive.selective_scan` for float32 on the CPU; `hold` asks for the zero-order hold."""
    inputs = (tensor.contiguous() for tensor in (x_BTD, delta_BTD, A_DN, B_BTN, C_BTN))
    skip_D = None if D_D is None else D_D.contiguous()
    starts_BT = None if starts_BT is None else starts_BT.contiguous()
    y_BTD, final, _ = _forward(*inputs, skip_D, state_BDN.contiguous(), starts_BT, hold)
    return y_BTD, final


@torch.library.custom_op("fairway::selective_scan_native", mutates_args=())
def _forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    skip: Tensor | None, state: Tensor, starts: Tensor | None, hold: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Outputs, the final state, and the state at the start of each span (B, S, N, D)."""
    y, last, firsts = torch.empty_like(x), torch.empty_like(state), _firsts(x, A)
    given = (x, delta, A, B, C, skip, state, starts)
    kernel("selective_scan_forward")(
        *map(pointer, given), pointer(y), pointer(last), pointer(firsts), longs(*x.shape, A.shape[1]), c_int(hold)
    )  # fmt: skip
    return y, last, firsts


@_forward.register_fake
def _(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    skip: Tensor | None, state: Tensor, starts: Tensor | None, hold: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), torch.empty_like(state), _firsts(x, A)


@torch.library.custom_op("fairway::selective_scan_native_backward", mutates_args=())
def _backward(
    grad_y: Tensor, grad_last: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    skip: Tensor | None, firsts: Tensor, starts: Tensor | None, hold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by x, Delta, A, B, C, the skip and the carried state."""
    batch, _, width = x.shape
    groups = -(-torch.get_num_threads() // max(1, batch))
    by_x, by_delta, by_state = torch.empty_like(x), torch.empty_like(x), torch.empty_like(grad_last)
    by_A, by_skip = x.new_empty(batch, *A.shape), x.new_zeros(batch, width)
    by_B, by_C = B.new_empty(groups, *B.shape), C.new_empty(groups, *C.shape)
    given = (grad_y.contiguous(), grad_last.contiguous(), x, delta, A, B, C, skip, firsts, starts)
    kernel("selective_scan_backward")(
        *map(pointer, given), *map(pointer, (by_x, by_delta, by_A, by_B, by_C, by_skip, by_state)),
        longs(*x.shape, A.shape[1], groups), c_int(hold),
    )  # fmt: skip
    return by_x, by_delta, by_A.sum(0), by_B.sum(0), by_C.sum(0), by_skip.sum(0), by_state


@_backward.register_fake
def _(
    grad_y: Tensor, grad_last: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    skip: Tensor | None, firsts: Tensor, starts: Tensor | None, hold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    by_skip, by_state = x.new_empty(x.shape[2]), grad_last.new_empty(grad_last.shape)
    by_x, by_delta, by_A, by_B, by_C = (torch.empty_like(tensor) for tensor in (x, delta, A, B, C))
    return by_x, by_delta, by_A, by_B, by_C, by_skip, by_state


def _firsts(x: Tensor, A: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], -(-x.shape[1] // SPAN), A.shape[1], x.shape[2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, delta, A, B, C, skip, _, starts, ctx.hold = inputs
    ctx.save_for_backward(x, delta, A, B, C, skip, output[2], starts)


def _differentiate(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *given, skip, firsts, starts = ctx.saved_tensors
    *gradients, by_skip, by_state = _backward(grad_y, grad_last, *given, skip, firsts, starts, ctx.hold)
    return *gradients, None if skip is None else by_skip, by_state, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
