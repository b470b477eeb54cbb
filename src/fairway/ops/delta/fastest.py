"""The gated delta rule by the fastest path for the tensors at hand.

The native kernel takes float32 and bfloat16 on the CPU (how far the latter lies from the definition is said in
`native.py`), the Triton kernels what is on a GPU, the chunked form everything else. See `naive.py` for the definition.
Shape key: B batch, T time, H heads, K key width, V value width.
"""

import torch
from torch import Tensor

from fairway.core.native import usable
from fairway.ops.delta import chunk as chunked
from fairway.ops.delta import native
from fairway.ops.gpu import on_gpu
from fairway.ops.precision import full_precision


@on_gpu("delta")
def delta(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    log_decay_BTH: Tensor | None = None,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the final state (B, H, K, V). `chunk` is for the chunked form."""
    if q_BTHK.dtype != torch.bfloat16 or not usable(q_BTHK, k_BTHK, v_BTHV):
        return _widened(q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay_BTH, state_BHKV, starts_BT, chunk)
    log_decay = None if log_decay_BTH is None else log_decay_BTH.float()
    state = None if state_BHKV is None else state_BHKV.float()
    return native.delta(q_BTHK, k_BTHK, v_BTHV, beta_BTH.float(), log_decay, state, starts_BT)


@full_precision
def _widened(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    log_decay_BTH: Tensor | None,
    state_BHKV: Tensor | None,
    starts_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    given = (q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay_BTH, state_BHKV, starts_BT)
    return native.delta(*given) if usable(*given[:-1]) else chunked.delta(*given, chunk)
