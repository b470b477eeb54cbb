"""Retention by the fastest path for the tensors at hand.

The native kernel of Mamba-2's state space takes float32 and bfloat16 on the CPU, the Triton kernels take what is on a
GPU, the chunked form everything else. See `naive.py` for the definition, `ops/ssd/fastest.py` for bfloat16's error.
Shape key: B batch, T time, H heads, K key width, V value width.
"""

import torch
from torch import Tensor

from fairway.core.native import usable
from fairway.ops.gpu import on_gpu
from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state
from fairway.ops.retention import chunk as chunked
from fairway.ops.ssd import native


@on_gpu("retention")
def retention(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_H: Tensor,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) in the type of q and the final state (B, H, K, V). `chunk` is for the chunked form."""
    if q_BTHK.dtype == torch.bfloat16 and usable(q_BTHK, k_BTHK, v_BTHV):
        state = None if state_BHKV is None else state_BHKV.float()
        return _natively(q_BTHK, k_BTHK, v_BTHV, log_decay_H.float(), state, starts_BT)
    return _of_floats(q_BTHK, k_BTHK, v_BTHV, log_decay_H, state_BHKV, starts_BT, chunk)


@full_precision
def _of_floats(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_H: Tensor,
    state_BHKV: Tensor | None,
    starts_BT: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    if not usable(q_BTHK, k_BTHK, v_BTHV, log_decay_H, state_BHKV):
        return chunked.retention(q_BTHK, k_BTHK, v_BTHV, log_decay_H, state_BHKV, starts_BT, chunk)
    return _natively(q_BTHK, k_BTHK, v_BTHV, log_decay_H, state_BHKV, starts_BT)


def _natively(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_H: Tensor,
    state_BHKV: Tensor | None,
    starts_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, width = q_BTHK.shape
    state = initial_state(state_BHKV, log_decay_H, batch, heads, width, v_BTHV.shape[3])
    log_decay_BTH = log_decay_H.expand(batch, length, heads)
    return native.recurrence(q_BTHK, k_BTHK, v_BTHV, log_decay_BTH, state, starts_BT)
