"""A matrix whose rows are whole multiples of a step, times many vectors: the definition.

`y_no = step_o sum_i q_oi x_ni`, `W_oi = step_o q_oi`. Shape key: N vectors, O outputs, I inputs.
"""

from torch import Tensor


def code_product(code_OI: Tensor, step_O: Tensor, x_NI: Tensor) -> Tensor:
    """The products, (N, O), in float64."""
    return (x_NI.double()[:, None] * code_OI.double()).sum(-1) * step_O.double()
