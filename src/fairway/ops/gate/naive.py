"""A gate: one half of the features, through a point function, times the other half: the definition.

`y = f(a) .* b` for `x = (a, b)`. Shazeer 2020 (arXiv:2002.05202). Shape key: F features after the gate.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Point = Literal["identity", "sigmoid", "relu", "silu", "gelu", "gelu_tanh"]

POINTS: dict[Point, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}


def gate(x_2F: Tensor, point: Point) -> Tensor:
    """(..., 2F) to (..., F); the gate is the first half."""
    first, second = x_2F.chunk(2, -1)
    return POINTS[point](first) * second


def gate_apart(gate_F: Tensor, other_F: Tensor, point: Point) -> Tensor:
    """The same of halves that lie apart: (..., F) and (..., F) to (..., F)."""
    return POINTS[point](gate_F) * other_F
