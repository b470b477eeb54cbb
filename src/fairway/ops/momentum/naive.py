"""The passes over memory around an orthogonalised update: the definition.

`m = mu m + (1-mu) g`, `u = (1-mu) g + mu m` (Nesterov) or `m`, each matrix of u over its Frobenius norm; and
`w = kept w - rate o`. Shape key: N matrices, R rows, C columns.
"""

from torch import Tensor, linalg

SMALLEST_NORM = 1e-7


def direction(gradient_NRC: Tensor, momentum_NRC: Tensor, mu: float, nesterov: bool) -> tuple[Tensor, Tensor]:
    """`(u_NRC, momentum_NRC)`: updates of norm 1, and the momentum after the step; zero updates stay zero."""
    after_NRC = mu * momentum_NRC + (1.0 - mu) * gradient_NRC
    u_NRC = (1.0 - mu) * gradient_NRC + mu * after_NRC if nesterov else after_NRC
    return u_NRC / linalg.matrix_norm(u_NRC, keepdim=True).clamp_min(SMALLEST_NORM), after_NRC


def descended(weight_NRC: Tensor, o_NRC: Tensor, kept: float, rate: float) -> Tensor:
    """The weights after a step."""
    return kept * weight_NRC - rate * o_NRC
