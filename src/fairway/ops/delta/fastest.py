"""The gated delta rule by the fastest path for the tensors at hand.

The Triton kernels take what is on a GPU, the chunked form everything else. See `naive.py` for the definition.
Shape key: B batch, T time, H heads, K key width, V value width.
"""

from torch import Tensor

from fairway.ops.delta import chunk as chunked
from fairway.ops.gpu import on_gpu


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
    return chunked.delta(q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_decay_BTH, state_BHKV, starts_BT, chunk)
