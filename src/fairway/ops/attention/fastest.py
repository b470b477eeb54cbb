"""Causal attention by the fastest path for the tensors at hand.

Torch's fused kernels take what is on a GPU, the native kernel whole sequences on the CPU; blocks of batched matrix
products take everything else. See
`naive.py` for the definition. Shape key: B batch, H heads, G key groups, T queries, S keys, K head width.
"""

from torch import Tensor

from fairway.core.native import usable
from fairway.ops.attention import blocked, fused, native

FEWEST_QUERIES = 16
"""Below this many queries the kernel's packing of the keys costs more than it saves."""


def attend(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, first_BT: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """The same as `naive.attend`."""
    queries, width = q_BHTK.shape[2:]
    if q_BHTK.is_cuda and softcap is None:
        return fused.attend(q_BHTK, k_BGSK, v_BGSK, first_BT)
    if queries < FEWEST_QUERIES or width % 2 or v_BGSK.shape[-1] != width or not usable(q_BHTK, k_BGSK, v_BGSK):
        return blocked.attend(q_BHTK, k_BGSK, v_BGSK, first_BT, softcap)
    q_BTHK, k_BSGK, v_BSGK = (x.transpose(1, 2) for x in (q_BHTK, k_BGSK, v_BGSK))
    return native.attend(q_BTHK, k_BSGK, v_BSGK, first_BT, softcap).transpose(1, 2)
