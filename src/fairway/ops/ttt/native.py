"""TTT-Linear by the native kernel, registered with torch so that autograd sees one op.

The inner bias is the last row of the inner weights here. The kernel keeps each token's rated gradient and the inner
weights about every 64 tokens, and computes the rest again for the gradients, which flow through the inner steps.
See `naive.py` for the definition.
Shape key: B batch, T time, H heads, K head width, L = K + 1, M places of a mini-batch, S spans.
"""

from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, longs, pointer
from fairway.ops.ttt.inner import Carried

KEPT_EVERY = 64


def ttt(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    rate_BTH: Tensor,
    token_rate_M: Tensor,
    gain_HK: Tensor,
    bias_HK: Tensor,
    carried: Carried,
) -> tuple[Tensor, Carried]:
    """The same as `naive.ttt` for a linear inner model in float32 on the CPU."""
    inputs = (x.contiguous() for x in (q_BTHK, k_BTHK, v_BTHK, rate_BTH, token_rate_M, gain_HK, bias_HK))
    weights_BHLK, sums_BHLK = torch.cat(carried.weights, 2), torch.cat(carried.sums, 2)
    y_BTHK, weights_BHLK, sums_BHLK, *_ = _forward(*inputs, weights_BHLK, sums_BHLK, carried.place)
    rows = (q_BTHK.shape[3], 1)
    place = (carried.place + q_BTHK.shape[1]) % len(token_rate_M)
    return y_BTHK, Carried(weights_BHLK.split(rows, 2), sums_BHLK.split(rows, 2), place)


@torch.library.custom_op("fairway::ttt", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor, token_rate: Tensor, gain: Tensor, shift: Tensor, weights: Tensor,
    sums: Tensor, place: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Outputs, weights and sums behind the last token, rated gradients, weights of spans (B, H, S, L, K)."""
    outputs = _outputs(q, token_rate, weights, place)
    given = (q, k, v, rate, token_rate, gain, shift, weights, sums)
    kernel("ttt_forward")(*map(pointer, given), *map(pointer, outputs), _sizes(q, token_rate, place))
    return outputs


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor, token_rate: Tensor, gain: Tensor, shift: Tensor, weights: Tensor,
    sums: Tensor, place: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _outputs(q, token_rate, weights, place)


@torch.library.custom_op("fairway::ttt_backward", mutates_args=())
def _backward(
    grad_y: Tensor, grad_weights: Tensor, grad_sums: Tensor, q: Tensor, k: Tensor, v: Tensor, rate: Tensor,
    token_rate: Tensor, gain: Tensor, shift: Tensor, sums: Tensor, rated: Tensor, firsts: Tensor, place: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by q, k, v, the rates, the token rates, gain and shift of the norm, the weights and the sums."""
    batch, _, heads, width = q.shape
    by_q, by_k, by_v, by_rate, by_weights, by_sums = (torch.empty_like(x) for x in (q, k, v, rate, sums, sums))
    by_token_rate = q.new_empty(batch, heads, len(token_rate))
    by_gain, by_shift = (q.new_empty(batch, heads, width) for _ in range(2))
    upstream = tuple(grad.contiguous() for grad in (grad_y, grad_weights, grad_sums))
    given = (q, k, v, rate, token_rate, gain, shift, sums, rated, firsts)
    found = (by_q, by_k, by_v, by_rate, by_token_rate, by_gain, by_shift, by_weights, by_sums)
    kernel("ttt_backward")(
        *map(pointer, upstream), *map(pointer, given), *map(pointer, found), _sizes(q, token_rate, place)
    )  # fmt: skip
    return by_q, by_k, by_v, by_rate, by_token_rate.sum((0, 1)), by_gain.sum(0), by_shift.sum(0), by_weights, by_sums


@_backward.register_fake
def _(
    grad_y: Tensor, grad_weights: Tensor, grad_sums: Tensor, q: Tensor, k: Tensor, v: Tensor, rate: Tensor,
    token_rate: Tensor, gain: Tensor, shift: Tensor, sums: Tensor, rated: Tensor, firsts: Tensor, place: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(rate),
        torch.empty_like(token_rate), torch.empty_like(gain), torch.empty_like(shift), torch.empty_like(sums),
        torch.empty_like(sums),
    )  # fmt: skip


def _outputs(
    q: Tensor, token_rate: Tensor, weights: Tensor, place: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    length, places = q.shape[1], len(token_rate)
    pieces = -(-(length + place) // places) if length else 0
    spans = -(-pieces // _pieces_of_a_span(places))
    firsts = q.new_empty(*weights.shape[:2], spans, *weights.shape[2:])
    return torch.empty_like(q), torch.empty_like(weights), torch.empty_like(weights), torch.empty_like(q), firsts


def _pieces_of_a_span(places: int) -> int:
    return max(1, KEPT_EVERY // places)


def _sizes(q: Tensor, token_rate: Tensor, place: int) -> Any:
    return longs(*q.shape, len(token_rate), place, _pieces_of_a_span(len(token_rate)))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> None:
    q, k, v, rate, token_rate, gain, shift, _, sums, ctx.place = inputs
    ctx.save_for_backward(q, k, v, rate, token_rate, gain, shift, sums, output[3], output[4])


def _differentiate(
    ctx: Any, grad_y: Tensor, grad_weights: Tensor, grad_sums: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    return *_backward(grad_y, grad_weights, grad_sums, *ctx.saved_tensors, ctx.place), None


_forward.register_autograd(_differentiate, setup_context=_save)
