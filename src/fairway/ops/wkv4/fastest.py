"""The weighted key-value average of RWKV-4 by the fastest path for the tensors at hand.

The native kernel takes float32 on the CPU, the form of `chunk.py` everything else. See `naive.py` for the definition.
Shape key: B batch, T time, D channels.
"""

from torch import Tensor

from fairway.core.native import usable
from fairway.ops.precision import full_precision
from fairway.ops.wkv4 import chunk, native
from fairway.ops.wkv4.naive import Triple, empty_triple


@full_precision
def wkv4(
    k_BTD: Tensor,
    v_BTD: Tensor,
    w_D: Tensor,
    u_D: Tensor,
    state: Triple | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Triple]:
    """Outputs (B, T, D) and the final (numerator, denominator, maximum), each (B, D)."""
    given = state or empty_triple(k_BTD.shape[0], k_BTD.shape[2], k_BTD)
    path = native if usable(k_BTD, v_BTD, w_D, u_D, *given) else chunk
    return path.wkv4(k_BTD, v_BTD, w_D, u_D, given, starts_BT)
