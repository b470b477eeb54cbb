"""The gated delta rule by the fastest path for the tensors at hand.

The native kernel takes float32 on the CPU, the Triton kernels what is on a GPU, the chunked form everything else. See
`naive.py` for the definition.
Shape key: B batch, T time, H heads, K key width, V value width.
"""

from torch import Tensor

from fairway.core.native import usable
from fairway.ops.delta import chunk as chunked
from fairway.ops.delta import native
from fairway.ops.gpu import on_gpu
from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state


@on_gpu("delta")
@full_precision
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
    given = (q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay_BTH)
    if not usable(*given, state_BHKV):
        return chunked.delta(*given, state_BHKV, starts_BT, chunk)
    batch, _, heads, width = q_BTHK.shape
    state = initial_state(state_BHKV, v_BTHV, batch, heads, width, v_BTHV.shape[3])
    return native.delta(*given, state, starts_BT)
