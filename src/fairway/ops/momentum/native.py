"""The passes over memory around an orthogonalised update by the native kernel, in place and each in one go.

See `naive.py` for the definition. Not differentiable. Shape key: N matrices, R rows, C columns.
"""

from ctypes import c_float, c_int, c_long

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable


def served(*tensors: Tensor) -> bool:
    """Whether the kernel takes these float32 stacks; matrices lie whole, at any distance from each other."""
    return usable(*tensors) and all(_whole(tensor) for tensor in tensors)


def direction(gradient_NRC: Tensor, momentum_NRC: Tensor, u_NRC: Tensor, mu: float, nesterov: bool) -> None:
    """Steps `momentum_NRC`, and writes the updates of norm 1 into `u_NRC`, float32 or bfloat16."""
    assert u_NRC.is_contiguous()
    assert gradient_NRC.shape == momentum_NRC.shape == u_NRC.shape
    count, rows, columns = u_NRC.shape
    kernel("momentum_direction")(
        pointer(gradient_NRC), pointer(momentum_NRC), pointer(u_NRC), c_long(count), c_long(rows * columns),
        c_long(gradient_NRC.stride(0)), c_long(momentum_NRC.stride(0)), c_float(mu), c_int(nesterov),
        c_int(u_NRC.dtype == torch.bfloat16),
    )  # fmt: skip


def descend(weight_NRC: Tensor, o_NRC: Tensor, kept: float, rate: float) -> None:
    """Makes `weight_NRC` what `naive.descended` gives; `o_NRC` is float32 or bfloat16."""
    assert o_NRC.is_contiguous()
    count, rows, columns = o_NRC.shape
    kernel("momentum_descend")(
        pointer(weight_NRC), pointer(o_NRC), c_long(count), c_long(rows * columns), c_long(weight_NRC.stride(0)),
        c_float(kept), c_float(rate), c_int(o_NRC.dtype == torch.bfloat16),
    )  # fmt: skip


def _whole(tensor_NRC: Tensor) -> bool:
    return tensor_NRC.dtype == torch.float32 and tensor_NRC[0].is_contiguous()
