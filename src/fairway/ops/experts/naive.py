"""Experts by their definition: every expert sees every token, and gates that are zero leave it out.

`y_t = sum_e g_te f_e(x_t)`, f_e a feed-forward with the weights of expert e: `f(x) = (a(x W) .* x V) O` if gated,
`a(x W) O` otherwise. Shape key: N tokens, D width, E experts, F hidden width.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]


def expert(x_ND: Tensor, input_JD: Tensor, output_DF: Tensor, activation: Activation, *, gated: bool) -> Tensor:
    """One feed-forward; J is F, or 2F with the gate first."""
    h_NJ = functional.linear(x_ND, input_JD)
    if not gated:
        return functional.linear(activation(h_NJ), output_DF)
    gate_NF, value_NF = h_NJ.chunk(2, dim=-1)
    return functional.linear(activation(gate_NF) * value_NF, output_DF)


def mix(
    x_ND: Tensor, gate_NE: Tensor, input_EJD: Tensor, output_EDF: Tensor, activation: Activation, *, gated: bool
) -> Tensor:
    """The gated sum over all experts, (N, D)."""
    y_ND = torch.zeros_like(x_ND)
    for e in range(len(input_EJD)):
        y_ND = y_ND + gate_NE[:, e, None] * expert(x_ND, input_EJD[e], output_EDF[e], activation, gated=gated)
    return y_ND
