"""Log-probabilities of soft-capped logits by the native kernel: one pass over memory, in place. Not differentiable.

See `naive.py` for the definition. Shape key: V vocabulary.
"""

from ctypes import c_float, c_long

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable


def log_softmax_(z: Tensor, softcap: float | None) -> Tensor:
    """The same as `naive.log_softmax`, in float32 at least; may overwrite the logits and be they."""
    z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
    if not usable(z) or not z.is_contiguous():
        return (z if softcap is None else softcap * torch.tanh(z / softcap)).log_softmax(-1)
    width = z.shape[-1]
    kernel("log_softmax")(pointer(z), c_long(z.numel() // max(1, width)), c_long(width), c_float(softcap or 0.0))
    return z
