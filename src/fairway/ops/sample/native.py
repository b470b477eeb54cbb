"""One token drawn from logits by the native kernel, and where that cannot serve by torch.

See `naive.py` for the definition, which this equals up to the rounding of float32. Shape key: V vocabulary.
"""

from ctypes import byref, c_double, c_long

import torch
from torch import Tensor

from fairway.core.native import kernel, pointer, usable
from fairway.ops.sample import naive


def sample(
    logits_V: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    uniform: float,
) -> int:
    """The same as `naive.sample`."""
    if not usable(logits_V) or logits_V.dtype != torch.float32:
        return naive.sample(logits_V, temperature, top_k, top_p, min_p, uniform)
    chosen, logits_V = c_long(-1), logits_V.contiguous()
    kernel("sample")(
        pointer(logits_V), c_long(len(logits_V)), c_double(temperature), c_long(top_k or 0),
        c_double(0.0 if top_p is None else top_p), c_double(min_p or 0.0), c_double(uniform), byref(chosen),
    )  # fmt: skip
    assert chosen.value >= 0, "logits are not finite"
    return chosen.value
