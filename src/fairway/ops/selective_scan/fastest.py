"""The selective state space by the fastest path for the tensors at hand.

The native kernel takes float32 on the CPU, the Triton kernels take what is on a GPU, the
chunked form everything else. See `naive.py` for the definition.
Shape key: B batch, T time, D channels, N state width.
"""

from torch import Tensor

from fairway.core.native import usable
from fairway.ops.gpu import on_gpu
from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state
from fairway.ops.selective_scan import chunk, native
from fairway.ops.selective_scan.naive import Discretisation


@on_gpu("selective_scan")
@full_precision
def selective_scan(
    x_BTD: Tensor,
    delta_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_D: Tensor | None = None,
    state_BDN: Tensor | None = None,
    starts_BT: Tensor | None = None,
    discretisation: Discretisation = "euler",
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, D) and the final state (B, D, N). `delta_BTD` is positive, `A_DN` negative."""
    if not usable(x_BTD, delta_BTD, A_DN, B_BTN, C_BTN, D_D, state_BDN):
        given = (x_BTD, delta_BTD, A_DN, B_BTN, C_BTN, D_D, state_BDN, starts_BT)
        return chunk.selective_scan(*given, discretisation)
    state = initial_state(state_BDN, x_BTD, x_BTD.shape[0], *A_DN.shape)
    hold = discretisation == "zoh"
    return native.selective_scan(x_BTD, delta_BTD, A_DN, B_BTN, C_BTN, D_D, state, starts_BT, hold=hold)
