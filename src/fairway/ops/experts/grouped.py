"""Experts on the tokens sent to them only: sort by expert, one matrix product per expert, add back.

The same as `naive.mix` for gates that are zero but at the given assignments. No token is padded or dropped here.
Shape key: N tokens, D width, E experts, F hidden width, A assignments of a token to an expert.
"""

import torch
from torch import Tensor

from fairway.ops.experts.naive import Activation, expert


def mix(
    x_ND: Tensor,
    token_A: Tensor,
    expert_A: Tensor,
    gate_A: Tensor,
    input_EJD: Tensor,
    output_EDF: Tensor,
    activation: Activation,
    *,
    gated: bool,
) -> Tensor:
    """The sum over assignments of gate times expert, (N, D), in the dtype of the products.

    An expert without tokens gets a zero gradient, not none.
    """
    dtype = _product_dtype(x_ND)
    order_A = expert_A.argsort(stable=True)
    counts = expert_A.bincount(minlength=len(input_EJD)).tolist()
    source_A = token_A.index_select(0, order_A)
    pieces = x_ND.to(dtype).index_select(0, source_A).split(counts)
    outputs = [
        expert(piece, w_in, w_out, activation, gated=gated)
        for piece, w_in, w_out in zip(
            pieces, input_EJD.to(dtype).unbind(0), output_EDF.to(dtype).unbind(0), strict=True
        )
    ]
    y_AD = torch.cat(outputs) * gate_A.index_select(0, order_A)[:, None].to(dtype)
    return torch.zeros(x_ND.shape, dtype=dtype, device=x_ND.device).index_add(0, source_A, y_AD)


def _product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would multiply in; casting all experts at once costs less than one by one."""
    device = x.device.type
    return (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and x.dtype != torch.float64 else x.dtype
    )
