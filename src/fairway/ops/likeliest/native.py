"""The likeliest tokens of soft-capped logits by the native kernel, without a sorted or normalised copy of the logits.

See `naive.py` for the definition. Not differentiable. Shape key: N tokens, V vocabulary, K likeliest tokens.
"""

from ctypes import c_float, c_int, c_long

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable


def likeliest(z_NV: Tensor, few: int, softcap: float | None, temperature: float) -> tuple[Tensor, Tensor]:
    """The same as `naive.likeliest`, in float32 at least; without the kernel equal logits come in any order."""
    count, width = z_NV.shape
    assert 0 < few <= width
    if not usable(z_NV) or not z_NV.is_contiguous():
        return _without_kernel(z_NV, few, softcap, temperature)
    log_p_NK, index_NK = torch.empty(count, few), torch.empty(count, few, dtype=torch.int64)
    kernel("likeliest")(
        pointer(z_NV), pointer(log_p_NK), pointer(index_NK), c_long(count), c_long(width), c_long(few),
        c_float(softcap or 0.0), c_float(1 / temperature), c_int(z_NV.dtype == torch.bfloat16),
    )  # fmt: skip
    return log_p_NK, index_NK


def _without_kernel(z_NV: Tensor, few: int, softcap: float | None, temperature: float) -> tuple[Tensor, Tensor]:
    wide_NV = z_NV.float() if z_NV.dtype in (torch.bfloat16, torch.float16) else z_NV
    index_NK = wide_NV.topk(few, dim=-1).indices
    capped_NV = wide_NV if softcap is None else softcap * torch.tanh(wide_NV / softcap)
    return (capped_NV / temperature).log_softmax(-1).gather(-1, index_NK), index_NK
