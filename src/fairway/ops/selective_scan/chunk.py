"""The selective state space of Mamba chunk by chunk.

Decays, writes and read-outs of a chunk are computed at once; only one fused multiply-add per step is
sequential. The states inside a chunk are not kept for the backward pass but computed again from the state at
its start, so memory grows with T D, not with T D N. Gu & Dao 2023 (arXiv:2312.00752). Shape key: B batch, T
time, D channels, N state width, C places of a chunk.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fairway.ops.precision import full_precision
from fairway.ops.recurrence import initial_state, recurrence
from fairway.ops.selective_scan.naive import Discretisation


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
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, D) and the final state (B, D, N). `delta_BTD` is positive, `A_DN` negative."""
    batch, _, width = x_BTD.shape
    state = initial_state(state_BDN, x_BTD, batch, width, A_DN.shape[1])
    inputs = (x_BTD, delta_BTD, B_BTN, C_BTN, *([] if starts_BT is None else [~starts_BT]))
    pieces = [tensor.transpose(0, 1).split(chunk) for tensor in inputs]
    outputs = []
    for piece in zip(*pieces, strict=True):
        if torch.is_grad_enabled():
            y_CBD, state = checkpoint(
                _chunk, A_DN, state, discretisation, *piece, use_reentrant=False, preserve_rng_state=False
            )
        else:
            y_CBD, state = _chunk(A_DN, state, discretisation, *piece)
        outputs.append(y_CBD)
    y_BTD = torch.cat(outputs).transpose(0, 1)
    return (y_BTD if D_D is None else y_BTD + D_D * x_BTD), state


def _chunk(
    A_DN: Tensor,
    state_BDN: Tensor,
    discretisation: Discretisation,
    x_CBD: Tensor,
    delta_CBD: Tensor,
    B_CBN: Tensor,
    C_CBN: Tensor,
    keep_CB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs (C, B, D) and the state after one chunk."""
    if discretisation == "euler":
        decay_CBDN = (delta_CBD.unsqueeze(-1) * A_DN).exp()
        write_CBDN = (delta_CBD * x_CBD).unsqueeze(-1) * B_CBN.unsqueeze(-2)
    else:
        delta_A_CBDN = delta_CBD.unsqueeze(-1) * A_DN
        decay_CBDN = delta_A_CBDN.exp()
        write_CBDN = delta_A_CBDN.expm1() / A_DN * x_CBD.unsqueeze(-1) * B_CBN.unsqueeze(-2)
    if keep_CB is not None:
        decay_CBDN = decay_CBDN * keep_CB[..., None, None]
    after_CBDN, final_BDN = recurrence(decay_CBDN, write_CBDN, state_BDN)
    return (after_CBDN @ C_CBN.unsqueeze(-1)).squeeze(-1), final_BDN
