"""Retention on GPUs: the recurrence with one decay per head, by the kernels of Mamba-2's state space.

See `naive.py` for the definition and `ops/ssd/triton.py` for the kernels. Sun et al. 2023 (arXiv:2307.08621).
Shape key: B batch, T time, H heads, K key width, V value width.
"""

from torch import Tensor

from fairway.ops.ssd.triton import scalar_decay


def retention(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_H: Tensor,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as `naive.retention`; the state is float32, the outputs have the type of q."""
    batch, length, heads, _ = q_BTHK.shape
    log_decay_BTH = log_decay_H.float().expand(batch, length, heads)
    y_BTHV, last = scalar_decay(q_BTHK, k_BTHK, v_BTHV, log_decay_BTH, state_BHKV, starts_BT)
    return y_BTHV.to(q_BTHK.dtype), last
