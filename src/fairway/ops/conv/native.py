"""Causal depthwise convolution by the native kernel, alone or with a SiLU behind it, as one op to autograd.

The kernel reads rows where they lie, also in a part of a wider tensor; it computes in float32, and with SiLU computes
the sum again for the gradients. See `naive.py` for the definition.
Shape key: B batch, T time, D channels, K taps, P = K - 1 carried inputs.
"""

from ctypes import c_int
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, longs, pointer


def causal_conv(
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None,
    state_BPD: Tensor,
    starts_BT: Tensor | None,
    *,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """The same as `naive.causal_conv`, and its SiLU where asked for, for float32 or bfloat16 on the CPU, T > 0.

    Outputs have the dtype of x, the state is float32.
    """
    bias_D = None if bias_D is None else bias_D.float().contiguous()
    starts_BT = None if starts_BT is None else starts_BT.contiguous()
    weight_KD = weight_DK.float().T.contiguous()
    return _forward(x_BTD, weight_KD, bias_D, state_BPD.float().contiguous(), starts_BT, silu)


@torch.library.custom_op("fairway::causal_conv", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, starts: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """Outputs and the last inputs."""
    x, y, last = _in_rows(x), x.new_empty(x.shape), torch.empty_like(state)
    given = (x, weight, bias, state, starts, y, last)
    kernel("causal_conv_forward")(*map(pointer, given), _sizes(x, weight), c_int(silu), _half(x))
    return y, last


@_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(state)


@torch.library.custom_op("fairway::causal_conv_backward", mutates_args=())
def _backward(
    upstream: Tensor, grad_last: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor,
    starts: Tensor | None, silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by x, the weight, the bias and the carried inputs."""
    x, upstream, grad_last = _in_rows(x), upstream.contiguous(), grad_last.contiguous()
    by_x, by_state = x.new_empty(x.shape), torch.empty_like(state)
    by_weight = weight.new_empty(len(x), *weight.shape)
    by_bias = weight.new_empty(len(x), weight.shape[1])
    given = (upstream, grad_last, x, weight, bias, state, starts, by_x, by_weight, by_bias, by_state)
    kernel("causal_conv_backward")(*map(pointer, given), _sizes(x, weight), c_int(silu), _half(x))
    return by_x, by_weight.sum(0), by_bias.sum(0), by_state


@_backward.register_fake
def _(
    upstream: Tensor,
    grad_last: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), weight.new_empty(weight.shape[1]), torch.empty_like(state)


def _in_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _half(x: Tensor) -> c_int:
    return c_int(x.dtype == torch.bfloat16)


def _sizes(x: Tensor, weight: Tensor) -> Any:
    return longs(*x.shape, weight.shape[0], x.stride(0), x.stride(1))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, upstream: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    by_x, by_weight, by_bias, by_state = _backward(upstream, grad_last, *saved, ctx.silu)
    return by_x, by_weight, None if saved[2] is None else by_bias, by_state, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
