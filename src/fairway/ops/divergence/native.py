"""Divergence between a teacher's and a student's distribution by the native kernel, both taken from logits in one pass.

See `naive.py` for the definition; where the kernel cannot serve, that definition runs in float32 at least. Shape key: N
tokens, V vocabulary.
"""

from ctypes import c_float, c_int, c_long

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable
from fairway.ops.divergence import naive
from fairway.ops.divergence.naive import KINDS, Divergence, Softening


def divergence_(
    z_NV: Tensor, taught_NV: Tensor, kind: Divergence, soft: Softening, weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same as `naive.divergence`; its gradient may be `taught_NV` itself, overwritten. Not differentiable."""
    if z_NV.dtype != taught_NV.dtype:
        z_NV, taught_NV = _wide(z_NV), _wide(taught_NV)
    if not usable(z_NV, taught_NV) or not z_NV.is_contiguous() or not taught_NV.is_contiguous():
        return naive.divergence(_wide(z_NV), _wide(taught_NV), kind, soft, weight)
    value_N = torch.empty(len(z_NV))
    kernel("divergence")(
        pointer(z_NV), pointer(taught_NV), pointer(value_N), c_long(z_NV.shape[0]), c_long(z_NV.shape[1]),
        c_float(soft.softcap or 0.0), c_float(soft.taught_softcap or 0.0), c_float(1 / soft.temperature),
        c_float(weight), c_int(KINDS.index(kind.kind)), c_float(kind.share), c_int(z_NV.dtype == torch.bfloat16),
    )  # fmt: skip
    return value_N, taught_NV


def _wide(z_NV: Tensor) -> Tensor:
    return z_NV.float() if z_NV.dtype in (torch.bfloat16, torch.float16) else z_NV
