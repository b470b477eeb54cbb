"""TTT-Linear and TTT-MLP by the fastest path for the tensors at hand.

The native kernel takes linear inner models in float32 on the CPU. All else is for the mini-batches of `chunk.py`, also
the inner networks with a hidden layer: their time is in products of matrices that torch computes near the limit. See
`naive.py` for the definition. Shape key: B batch, T time, H heads, K head width, M places of a mini-batch.
"""

from torch import Tensor

from fairway.core.native import usable
from fairway.ops.precision import full_precision
from fairway.ops.ttt import chunk, native
from fairway.ops.ttt.inner import Carried


@full_precision
def ttt(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    rate_BTH: Tensor,
    token_rate_M: Tensor,
    gain_HK: Tensor,
    bias_HK: Tensor,
    carried: Carried,
    plain: bool = False,
) -> tuple[Tensor, Carried]:
    """Outputs (B, T, H, K) and what is carried on. `rate_BTH` is lr_j, `token_rate_M` is tok_i."""
    given = (q_BTHK, k_BTHK, v_BTHK, rate_BTH, token_rate_M, gain_HK, bias_HK)
    linear = len(carried.weights) == 2 and not plain
    if not linear or not usable(*given, *carried.weights, *carried.sums):
        return chunk.ttt(*given, carried, plain)
    return native.ttt(*given, carried)
