"""The router of a mixture of experts by the native kernel, and where that cannot serve by its definition.

One pass over the tokens each way. See `naive.py` for the definition. Shape key: N tokens, D width, E experts, K chosen,
S shares of the sums over tokens.
"""

from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, longs, pointer, usable
from fairway.ops.route import naive
from fairway.ops.route.naive import Form, Routed

_WHOLE = 16
"""Widths that the kernel takes are multiples of this."""


def route(x_ND: Tensor, router_ED: Tensor, bias_E: Tensor | None, top: int, form: Form, *, renormalise: bool) -> Routed:
    """The same as `naive.route`; of experts that rank equal, the kernel takes the first."""
    if not usable(x_ND, router_ED, bias_E) or x_ND.dtype != torch.float32 or x_ND.shape[1] % _WHOLE:
        return naive.route(x_ND, router_ED, bias_E, top, form, renormalise=renormalise)
    assert 0 < top <= len(router_ED)
    return Routed(*_forward(x_ND, router_ED, bias_E, top, form == "sigmoid", renormalise))


@torch.library.custom_op("fairway::route", mutates_args=())
def _forward(
    x: Tensor, router: Tensor, bias: Tensor | None, top: int, apart: bool, renormalise: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, router, bias = x.contiguous(), router.contiguous(), None if bias is None else bias.contiguous()
    logits, gate = x.new_empty(len(x), len(router)), x.new_empty(len(x), top)
    scores, expert = torch.empty_like(logits), torch.empty_like(gate, dtype=torch.int64)
    given = (x, router, bias, logits, scores, expert, gate)
    kernel("route_forward")(*map(pointer, given), _sizes(x, router, top, apart, renormalise))
    return logits, scores, expert, gate


@_forward.register_fake
def _(
    x: Tensor, router: Tensor, bias: Tensor | None, top: int, apart: bool, renormalise: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_all, of_chosen = (len(x), len(router)), (len(x), top)
    return x.new_empty(of_all), x.new_empty(of_all), x.new_empty(of_chosen, dtype=torch.int64), x.new_empty(of_chosen)


@torch.library.custom_op("fairway::route_backward", mutates_args=())
def _backward(
    by_logits: Tensor | None, by_scores: Tensor | None, by_gate: Tensor | None, x: Tensor, router: Tensor,
    scores: Tensor, expert: Tensor, apart: bool, renormalise: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    by_logits, by_scores, by_gate = (
        None if tensor is None else tensor.contiguous() for tensor in (by_logits, by_scores, by_gate)
    )
    x, router, shares = x.contiguous(), router.contiguous(), torch.get_num_threads()
    dx, drouter_SED = torch.empty_like(x), x.new_zeros(shares, *router.shape)
    given = (by_logits, by_scores, by_gate, x, router, scores, expert, dx, drouter_SED)
    kernel("route_backward")(*map(pointer, given), _sizes(x, router, expert.shape[1], apart, renormalise, shares))
    return dx, drouter_SED.sum(0)


@_backward.register_fake
def _(
    by_logits: Tensor | None, by_scores: Tensor | None, by_gate: Tensor | None, x: Tensor, router: Tensor,
    scores: Tensor, expert: Tensor, apart: bool, renormalise: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), torch.empty_like(router)


def _sizes(x: Tensor, router: Tensor, top: int, apart: bool, renormalise: bool, shares: int = 1) -> Any:
    return longs(*x.shape, len(router), top, int(apart), int(renormalise), shares)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, router, _, _, ctx.apart, ctx.renormalise = inputs
    _, scores, expert, _ = output
    ctx.save_for_backward(x, router, scores, expert)
    ctx.mark_non_differentiable(expert)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, by_logits: Tensor | None, by_scores: Tensor | None, _: Tensor | None, by_gate: Tensor | None
) -> tuple[Tensor | None, ...]:
    dx, drouter = _backward(by_logits, by_scores, by_gate, *ctx.saved_tensors, ctx.apart, ctx.renormalise)
    return dx, drouter, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
