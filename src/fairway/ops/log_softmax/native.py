"""Log-probabilities of soft-capped logits by the native kernel: one pass over memory. Not differentiable.

See `naive.py` for the definition. Shape key: V vocabulary.
"""

from ctypes import c_float, c_int, c_long

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable
from fairway.ops.log_softmax import naive


def log_softmax_(z: Tensor, softcap: float | None) -> Tensor:
    """The same as `naive.log_softmax`, in float32 at least; may overwrite logits of float32 and be they."""
    if not usable(z) or not z.is_contiguous():
        z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
        return (z if softcap is None else softcap * torch.tanh(z / softcap)).log_softmax(-1)
    y = z if z.dtype == torch.float32 else torch.empty(z.shape)
    width = z.shape[-1]
    kernel("log_softmax")(
        pointer(z), pointer(y), c_long(z.numel() // max(1, width)), c_long(width), c_float(softcap or 0.0),
        c_int(z.dtype == torch.bfloat16),
    )  # fmt: skip
    return y


def total_probability(log_p: Tensor) -> Tensor:
    """The same as `naive.total_probability`, in float32 at least. Not differentiable."""
    if log_p.dtype != torch.float32 or not usable(log_p) or not log_p.is_contiguous():
        return naive.total_probability(log_p)
    total = torch.empty(log_p.shape[:-1])
    kernel("log_softmax_total")(pointer(log_p), pointer(total), c_long(total.numel()), c_long(log_p.shape[-1]))
    return total
