"""Gated linear attention by the fastest path for the tensors at hand.

The native kernel takes float32 on the CPU, the Triton kernels take what is on a GPU, the
chunked form everything else. See `naive.py` for the definition.
Shape key: B batch, T time, H heads, K key width, V value width.
"""

from torch import Tensor

from fairway.core.native import usable
from fairway.ops.gla import chunk as chunked
from fairway.ops.gla import native
from fairway.ops.gpu import on_gpu
from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state


@on_gpu("gla")
@full_precision
def gla(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTHK: Tensor,
    state_BHKV: Tensor | None = None,
    starts_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the final state (B, H, K, V). `log_decay_BTHK` is log(alpha) <= 0.

    `chunk` is for the chunked form.
    """
    if not usable(q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK, state_BHKV):
        return chunked.gla(q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK, state_BHKV, starts_BT, chunk)
    batch, _, heads, width = q_BTHK.shape
    state = initial_state(state_BHKV, v_BTHV, batch, heads, width, v_BTHV.shape[3])
    return native.gla(q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK, state, starts_BT)
