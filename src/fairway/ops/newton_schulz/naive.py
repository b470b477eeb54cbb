"""Newton-Schulz iterations: the definition.

`X = (a I + b A + c A A) X` with `A = X X^T`, as often as there are coefficients; each singular value s of X goes
through `a s + b s^3 + c s^5`, and the singular vectors stay. Shape key: N matrices, R rows, C columns.
"""

from collections.abc import Sequence

from torch import Tensor

Coefficients = tuple[float, float, float]


def iterate(x_NRC: Tensor, steps: Sequence[Coefficients]) -> Tensor:
    """The matrices after all steps."""
    for a, b, c in steps:
        gram_NRR = x_NRC @ x_NRC.mT
        x_NRC = a * x_NRC + (b * gram_NRR + c * gram_NRR @ gram_NRR) @ x_NRC
    return x_NRC
