"""Causal attention by the native kernel, registered with torch so that autograd and `torch.compile` see one op.

See `naive.py` for the definition. Shape key: B batch, H heads, G key groups, T queries, S keys, K head width.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import floats, kernel, longs, pointer


def attend(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, first_BT: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """The same as `naive.attend` with time before heads: (B, T, H, K); all tensors float32 or all bfloat16."""
    y_BTHK, _ = _forward(q_BTHK, k_BSGK, v_BSGK, first_BT, softcap or 0.0)
    return y_BTHK


@torch.library.custom_op("fairway::attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, softcap: float) -> tuple[Tensor, Tensor]:
    q, k, v = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (q, k, v))
    y = torch.empty(q.shape, dtype=q.dtype)
    normaliser = torch.empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    first = None if first is None else first.contiguous()
    kernel("attention_forward")(
        pointer(q),
        pointer(k),
        pointer(v),
        pointer(first),
        pointer(y),
        pointer(normaliser),
        *_description(q, k, v, y, y, softcap),
    )
    return y, normaliser


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, softcap: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)


@torch.library.custom_op("fairway::attention_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor | None,
    y: Tensor,
    normaliser: Tensor,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (q, k, v))
    upstream = upstream.to(q.dtype)
    upstream = upstream if upstream.stride(-1) == 1 else upstream.contiguous()
    first = None if first is None else first.contiguous()
    dq, dk, dv = (torch.empty(tensor.shape, dtype=q.dtype) for tensor in (q, k, v))
    kernel("attention_backward")(
        pointer(upstream),
        pointer(q),
        pointer(k),
        pointer(v),
        pointer(first),
        pointer(y),
        pointer(normaliser),
        pointer(dq),
        pointer(dk),
        pointer(dv),
        *_description(q, k, v, y, upstream, softcap),
    )
    return dq, dk, dv


@_backward.register_fake
def _(
    upstream: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor | None,
    y: Tensor,
    normaliser: Tensor,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, first, softcap = inputs
    ctx.save_for_backward(q, k, v, first, *output)
    ctx.softcap = softcap


def _differentiate(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, first, y, normaliser = ctx.saved_tensors
    return (*_backward(upstream, q, k, v, first, y, normaliser, ctx.softcap), None, None)


_forward.register_autograd(_differentiate, setup_context=_save)

FUSED = torch.ops.fairway.attention.default
"""The op as dispatch modes see it."""


def _description(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, upstream: Tensor, softcap: float
) -> tuple[object, object, object]:
    batch, queries, heads, width = q.shape
    keys, groups = k.shape[1:3]
    strides = [tensor.stride(axis) for tensor in (q, k, v, y, upstream) for axis in (0, 2, 1)]
    sizes = longs(batch, heads, groups, queries, keys, width, *strides)
    half = ctypes.c_int(q.dtype == torch.bfloat16)
    return sizes, floats(width**-0.5, softcap), half
