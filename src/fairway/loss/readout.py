"""Logits of some tokens at a time, and what their gradient gives back to the hidden vectors and to the weights.

Through any head by automatic differentiation; of one table by three products that write into the gradients
themselves: `dh = dz W`, `dW = dW + dz^T h`, the latter some rows at a time, so that nothing as large as the table
is held besides its gradient and its copy in the dtype of the product. Shape key: N tokens, M tokens of a chunk, D
width, V vocabulary, R rows of the table.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fairway.ops.cross_entropy.native import widen_
from fairway.ops.cross_entropy.table import Table

_BLOCK = 1 << 20
"""Numbers of a table's gradient that exist at once in the dtype of the product."""


class Readout(ABC):
    """One pass over the tokens in order, a chunk at a time."""

    @abstractmethod
    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Detached logits of the next tokens, (M, V), which the caller may overwrite until it asks for more."""

    @abstractmethod
    def back(self, slope_MV: Tensor) -> None:
        """Takes the gradient by the latest logits."""

    @abstractmethod
    def gradients(self) -> list[Tensor | None]:
        """Gradients by the hidden vectors of all tokens, and by each parameter; None where there is none."""


class AnyReadout(Readout):
    """Logits of any function of hidden vectors and parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]) -> None:
        self.function, self.parameters = function, parameters
        self.hidden: list[Tensor] = []
        self.sums: list[Tensor | None] = [None] * len(parameters)

    def logits(self, hidden_MD: Tensor) -> Tensor:
        with torch.enable_grad():
            self.entering_MD = hidden_MD.detach().requires_grad_()
            self.leaving_MV = self.function(self.entering_MD)
        return self.leaving_MV.detach()

    def back(self, slope_MV: Tensor) -> None:
        wanted = [self.entering_MD, *self.parameters]
        first, *rest = torch.autograd.grad(self.leaving_MV, wanted, slope_MV, allow_unused=True)
        self.hidden.append(torch.zeros_like(self.entering_MD) if first is None else first)
        self.sums = [_sum(old, new) for old, new in zip(self.sums, rest, strict=True)]
        del self.entering_MD, self.leaving_MV

    def gradients(self) -> list[Tensor | None]:
        return [torch.cat(self.hidden), *self.sums]


class TableReadout(Readout):
    """Logits of one table, which may be among the parameters."""

    def __init__(self, table: Table, parameters: Sequence[Tensor], hidden_ND: Tensor) -> None:
        dtype = product_dtype(hidden_ND)
        self.scale = table.scale
        self.weight_VD = table.weight_VD.detach().to(dtype)
        self.by_hidden_ND = torch.empty_like(hidden_ND, memory_format=torch.contiguous_format)
        self.places = [parameter is table.weight_VD for parameter in parameters]
        self.by_table_VD = torch.empty_like(table.weight_VD) if any(self.places) else None
        self.held_MV: Tensor | None = None
        self.done = 0

    def logits(self, hidden_MD: Tensor) -> Tensor:
        self.hidden_MD = hidden_MD.detach().to(self.weight_VD.dtype)
        if self.held_MV is None:
            self.held_MV = hidden_MD.new_empty((len(hidden_MD), len(self.weight_VD)), dtype=self.weight_VD.dtype)
        logits_MV = torch.mm(self.hidden_MD, self.weight_VD.T, out=self.held_MV[: len(hidden_MD)])
        return logits_MV if self.scale == 1.0 else logits_MV.mul_(self.scale)

    def back(self, slope_MV: Tensor) -> None:
        if self.scale != 1.0:
            slope_MV = slope_MV.mul_(self.scale)
        _product(slope_MV, self.weight_VD, self.by_hidden_ND[self.done : self.done + len(slope_MV)], add=False)
        if self.by_table_VD is not None:
            rows = max(1, _BLOCK // self.by_table_VD.shape[1])
            for slope_MR, sum_RD in zip(slope_MV.split(rows, 1), self.by_table_VD.split(rows), strict=True):
                _product(slope_MR.T, self.hidden_MD, sum_RD, add=self.done > 0)
        self.done += len(slope_MV)

    def gradients(self) -> list[Tensor | None]:
        return [self.by_hidden_ND, *(self.by_table_VD if place else None for place in self.places)]


def product_dtype(hidden_ND: Tensor) -> torch.dtype:
    """Dtype in which a linear map of these vectors is computed here."""
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device) and hidden_ND.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_ND.dtype


def _product(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> None:
    """Writes `a b` to `out`, or adds it."""
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
    else:
        widen_(out, torch.mm(a, b), add=add)


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old.add_(new)
