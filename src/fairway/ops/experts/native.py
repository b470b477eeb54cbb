"""Experts by the native kernel, and where that cannot serve by grouped products.

Rows are gathered, multiplied, passed through the point function and weighed while they lie in the cache. See `naive.py`
for the definition. Shape key: N tokens, D width, E experts, F hidden width, J the width before the point function (2F
if gated, else F), A assignments of a token to an expert.
"""

from ctypes import c_int
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.native import kernel, longs, pointer, usable
from fairway.ops.experts import grouped
from fairway.ops.experts.naive import Activation
from fairway.ops.relu2.native import relu2

_ORDER: tuple[Activation, ...] = (functional.relu, functional.silu, functional.gelu, relu2)
_FEWEST = 16
"""Assignments for each expert from which on packing every weight pays."""


def mix(
    x_ND: Tensor,
    token_A: Tensor,
    expert_A: Tensor,
    gate_A: Tensor,
    input_EJD: Tensor,
    output_EDF: Tensor,
    activation: Activation,
    *,
    gated: bool,
) -> Tensor:
    """The same as `grouped.mix`; in bfloat16, all that lies between the products stays in float32."""
    rows_ND = x_ND.to(grouped.product_dtype(x_ND))
    if not _serves(rows_ND, input_EJD, output_EDF, activation, len(expert_A)):
        return grouped.mix(x_ND, token_A, expert_A, gate_A, input_EJD, output_EDF, activation, gated=gated)
    point = _ORDER.index(activation)
    return _forward(rows_ND, token_A, expert_A, gate_A.float(), input_EJD, output_EDF, point, gated)[0]


def _serves(x_ND: Tensor, input_EJD: Tensor, output_EDF: Tensor, activation: Activation, assignments: int) -> bool:
    return (
        usable(x_ND)
        and usable(input_EJD, output_EDF)
        and (x_ND.dtype == torch.bfloat16 or input_EJD.dtype == torch.float32)
        and activation in _ORDER
        and x_ND.shape[1] % 2 == 0
        and output_EDF.shape[2] % 2 == 0
        and assignments >= _FEWEST * len(input_EJD)
    )


@torch.library.custom_op("fairway::experts", mutates_args=())
def _forward(
    x: Tensor, token: Tensor, expert: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor, point: int, gated: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output; and for the backward pass what entered the point function, gates, and where assignments stand."""
    x, w_in, w_out, token, expert = (tensor.contiguous() for tensor in (x, w_in, w_out, token, expert))
    slots = len(expert)
    sizes = _sizes(x, w_in, w_out, slots, point, gated)
    plan = torch.empty(_plan_length(x, w_in, slots), dtype=torch.int64)
    kernel("experts_plan")(pointer(token), pointer(expert), pointer(plan), sizes)
    gate = gate.index_select(0, plan[:slots])
    h, parts, y = x.new_empty(slots, w_in.shape[1]), x.new_empty(slots, x.shape[1]), torch.empty_like(x)
    given = [pointer(tensor) for tensor in (x, gate, w_in, w_out, h, parts, y, plan)]
    kernel("experts_forward")(*given, sizes, *_halves(x, w_in))
    return y, h, gate, plan


@_forward.register_fake
def _(
    x: Tensor, token: Tensor, expert: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor, point: int, gated: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    slots = len(expert)
    plan = expert.new_empty(_plan_length(x, w_in, slots))
    return torch.empty_like(x), x.new_empty(slots, w_in.shape[1]), torch.empty_like(gate), plan


@torch.library.custom_op("fairway::experts_backward", mutates_args=())
def _backward(
    upstream: Tensor, x: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor, h: Tensor, plan: Tensor, point: int,
    gated: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    upstream, x, w_in, w_out = (tensor.contiguous() for tensor in (upstream, x, w_in, w_out))
    slots = len(gate)
    sizes = _sizes(x, w_in, w_out, slots, point, gated)
    parts = x.new_empty(slots, x.shape[1])
    dx, by_slot, dw_in, dw_out = (
        torch.empty_like(x),
        torch.empty_like(gate),
        torch.empty_like(w_in),
        torch.empty_like(w_out),
    )
    given = (upstream, x, gate, w_in, w_out, h, parts, dx, by_slot, dw_in, dw_out, plan)
    kernel("experts_backward")(*(pointer(tensor) for tensor in given), sizes, *_halves(x, w_in))
    dgate = torch.empty_like(gate).index_copy_(0, plan[:slots], by_slot)
    return dx, dgate, dw_in, dw_out


@_backward.register_fake
def _(
    upstream: Tensor, x: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor, h: Tensor, plan: Tensor, point: int,
    gated: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), torch.empty_like(gate), torch.empty_like(w_in), torch.empty_like(w_out)


def _sizes(x: Tensor, w_in: Tensor, w_out: Tensor, slots: int, point: int, gated: bool) -> Any:
    return longs(*x.shape, w_out.shape[2], len(w_in), slots, int(gated), point, torch.get_num_threads())


def _plan_length(x: Tensor, w_in: Tensor, slots: int) -> int:
    return 3 * slots + len(w_in) + 1 + len(x) + 1


def _halves(x: Tensor, w_in: Tensor) -> tuple[c_int, c_int]:
    return c_int(x.dtype == torch.bfloat16), c_int(w_in.dtype == torch.bfloat16)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, _, _, w_in, w_out, point, gated = inputs
    _, h, gate, plan = output
    ctx.save_for_backward(x, gate, w_in, w_out, h, plan)
    ctx.point, ctx.gated = point, gated
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, upstream: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    dx, dgate, dw_in, dw_out = _backward(upstream, *ctx.saved_tensors, ctx.point, ctx.gated)
    return dx, None, None, dgate, dw_in, dw_out, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
