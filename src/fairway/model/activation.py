"""Point functions between the two linear maps of a feed-forward, by the names that its techniques use."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from fairway.ops.relu2.native import relu2

Activation = Callable[[Tensor], Tensor]


def leaky_relu2(x: Tensor) -> Tensor:
    """The square of the leaky ReLU with slope 1/2: `x^2` above zero, `x^2 / 4` below."""
    return functional.leaky_relu(x, 0.5).square()


ACTIVATIONS: dict[str, Activation] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
    "relu2": relu2,
    "leaky_relu2": leaky_relu2,
    "sigmoid": torch.sigmoid,
}
