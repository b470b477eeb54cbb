"""Cross-entropy of soft-capped logits by the native kernel, which turns the logits into their gradient in place.

See `naive.py` for the definition; where the kernel cannot serve, that definition runs in float32 at least.
Shape key: N tokens, V vocabulary, K chosen tokens, M = K + 1 outcomes.
"""

from ctypes import c_float, c_int, c_long
from typing import Any

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable
from fairway.ops.cross_entropy import naive
from fairway.ops.cross_entropy.naive import Pull


def cross_entropy_(
    z_NV: Tensor, target_N: Tensor, softcap: float | None, z_loss: float, weight: float, pull: Pull | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `naive.cross_entropy`; its gradient may be `z_NV` itself, overwritten. Not differentiable."""
    if not usable(z_NV) or not z_NV.is_contiguous():
        nats_N, normaliser_N, slope_NV = naive.cross_entropy(_wide(z_NV), target_N, softcap, z_loss, weight, pull)
        return nats_N, normaliser_N, slope_NV.to(z_NV.dtype)
    nats_N, normaliser_N = torch.empty(2, len(z_NV)).unbind()
    kernel("cross_entropy_rows")(
        pointer(z_NV), pointer(target_N.contiguous()), pointer(nats_N), pointer(normaliser_N), c_long(z_NV.shape[0]),
        c_long(z_NV.shape[1]), c_float(softcap or 0.0), c_float(z_loss), c_float(weight),
        c_int(z_NV.dtype == torch.bfloat16), *_pulled(pull),
    )  # fmt: skip
    return nats_N, normaliser_N, z_NV


def fold(z_NV: Tensor, index_NK: Tensor, softcap: float | None, temperature: float) -> tuple[Tensor, Tensor]:
    """The same as `naive.fold`, in float32 at least; fewer than V tokens are chosen, each once. Not differentiable."""
    if not usable(z_NV) or not z_NV.is_contiguous():
        return naive.fold(_wide(z_NV), index_NK, softcap, temperature)
    count, few = index_NK.shape
    assert few < z_NV.shape[1]
    log_p_NM, others_N = torch.empty(count, few + 1), torch.empty(count)
    kernel("cross_entropy_fold")(
        pointer(z_NV), pointer(index_NK.contiguous()), pointer(log_p_NM), pointer(others_N), c_long(count),
        c_long(z_NV.shape[1]), c_long(few), c_float(softcap or 0.0), c_float(1 / temperature),
        c_int(z_NV.dtype == torch.bfloat16),
    )  # fmt: skip
    return log_p_NM, others_N


def widen_(sums: Tensor, parts: Tensor, *, add: bool) -> None:
    """Writes `parts` to `sums` or adds them, without a copy in the dtype of the sums. Not differentiable."""
    whole = sums.is_contiguous() and parts.is_contiguous()
    if sums.dtype == torch.float32 and parts.dtype == torch.bfloat16 and whole and usable(sums) and usable(parts):
        kernel("cross_entropy_widen")(pointer(sums), pointer(parts), c_long(sums.numel()), c_int(add))
    elif add:
        sums.add_(parts)
    else:
        sums.copy_(parts)


def _wide(z_NV: Tensor) -> Tensor:
    return z_NV.float() if z_NV.dtype in (torch.bfloat16, torch.float16) else z_NV


def _pulled(pull: Pull | None) -> tuple[Any, ...]:
    if pull is None:
        return *map(pointer, (None, None, None, None)), c_long(0), c_float(1.0), c_float(0.0)
    given = (pull.index_NK, pull.others_N, pull.share_N, pull.slope_NK)
    assert all(tensor.is_contiguous() for tensor in given)
    assert all(tensor.dtype == torch.float32 for tensor in given[1:])
    few = c_long(pull.index_NK.shape[1])
    return *map(pointer, given), few, c_float(1 / pull.temperature), c_float(pull.weight)
