"""A network's float32 products on the integers that its artifact holds, wherever the weights still are these.

The weights of a quantised model are whole multiples of a step for each row. Inside `CodedProducts`, `functional.linear`
by such a weight multiplies the integers: the same products, rounded less than in float32, and faster. The network's own
forward runs as ever. A weight that was changed since, or is no multiple of its steps, multiplies as floats, and so does
everything where gradients are wanted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fairway.ops.code_product.native import code_product, worthwhile
from fairway.ops.matvec.native import INT8, PackedMatrix, packed


class CodedProducts(TorchFunctionMode):
    """While it is entered, products by a network's quantised weights are computed on their integers."""

    def __init__(self, network: nn.Module, steps: Mapping[str, Tensor]) -> None:
        """`steps`: by the name of a parameter, what its rows are whole multiples of."""
        super().__init__()
        named = dict(network.named_parameters()) if worthwhile() else {}
        self._coded = {id(named[name]): _Coded(named[name], step_O) for name, step_O in steps.items() if name in named}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is functional.linear and len(args) == 2 and not kwargs and not torch.is_grad_enabled():
            x, weight = args
            coded = self._coded.get(id(weight))
            matrix = coded.matrix() if coded is not None and x.dtype == torch.float32 else None
            if matrix is not None:
                return code_product(matrix, x)
        return func(*args, **(kwargs or {}))


class _Coded:
    """A weight, and its integers once they are asked for."""

    def __init__(self, weight: Tensor, step_O: Tensor) -> None:
        self.weight = weight
        self.step_O = step_O
        self._version: int | None = None
        self._matrix: PackedMatrix | None = None

    def matrix(self) -> PackedMatrix | None:
        """The weight as it is now in bytes; None where it has none."""
        if self._version != self.weight._version:
            self._version = self.weight._version
            matrix = packed(self.weight.detach(), self.step_O, 8) if self._fits() else None
            self._matrix = matrix if matrix is not None and matrix.format == INT8 else None
        return self._matrix

    def _fits(self) -> bool:
        return self.weight.device.type == "cpu" and self.weight.dtype == torch.float32 and self.weight.ndim == 2
