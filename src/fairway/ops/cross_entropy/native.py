"""Cross-entropy of soft-capped logits by the native kernel, which turns the logits into their gradient in place.

See `naive.py` for the definition; where the kernel cannot serve, that definition runs in float32 at least.
Shape key: N tokens, V vocabulary.
"""

from ctypes import c_float, c_int, c_long

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable
from fairway.ops.cross_entropy import naive


def cross_entropy_(
    z_NV: Tensor, target_N: Tensor, softcap: float | None, z_loss: float, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `naive.cross_entropy`; its gradient may be `z_NV` itself, overwritten. Not differentiable."""
    if not usable(z_NV) or not z_NV.is_contiguous():
        wide_NV = z_NV.float() if z_NV.dtype in (torch.bfloat16, torch.float16) else z_NV
        nats_N, normaliser_N, slope_NV = naive.cross_entropy(wide_NV, target_N, softcap, z_loss, weight)
        return nats_N, normaliser_N, slope_NV.to(z_NV.dtype)
    nats_N, normaliser_N = torch.empty(2, len(z_NV)).unbind()
    kernel("cross_entropy_rows")(
        pointer(z_NV), pointer(target_N.contiguous()), pointer(nats_N), pointer(normaliser_N), c_long(z_NV.shape[0]),
        c_long(z_NV.shape[1]), c_float(softcap or 0.0), c_float(z_loss), c_float(weight),
        c_int(z_NV.dtype == torch.bfloat16),
    )  # fmt: skip
    return nats_N, normaliser_N, z_NV


def widen_(sums: Tensor, parts: Tensor, *, add: bool) -> None:
    """Writes `parts` to `sums` or adds them, without a copy in the dtype of the sums. Not differentiable."""
    whole = sums.is_contiguous() and parts.is_contiguous()
    if sums.dtype == torch.float32 and parts.dtype == torch.bfloat16 and whole and usable(sums) and usable(parts):
        kernel("cross_entropy_widen")(pointer(sums), pointer(parts), c_long(sums.numel()), c_int(add))
    elif add:
        sums.add_(parts)
    else:
        sums.copy_(parts)
