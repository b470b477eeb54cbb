"""A matrix whose rows are whole multiples of a step, times a vector: the definition.

`y_o = step_o sum_i q_oi x_i`, `W_oi = step_o q_oi`. Shape key: O outputs, I inputs.
"""

from torch import Tensor


def matvec(code_OI: Tensor, step_O: Tensor, x_I: Tensor) -> Tensor:
    """The product, (O,), in float64."""
    return (code_OI.double() * x_I.double()).sum(1) * step_O.double()
