"""A sparse matrix in Deep Compression's representation times a vector: the definition.

Entries follow one another row by row: entry n lies behind `gap_n` zeros after the one before it and is worth
`table[code_n]`, `table[0] = 0`. `y_o = sum of table[code_n] x_i over the entries at (o, i)`. Han et al. 2016
(arXiv:1510.00149). Shape key: N entries, O outputs, I inputs, C codes.
"""

import torch
from torch import Tensor


def sparse_matvec(gap_N: Tensor, code_N: Tensor, table_C: Tensor, rows: int, x_I: Tensor) -> Tensor:
    """The product, (O,), in float64."""
    y_O = torch.zeros(rows, dtype=torch.float64)
    place = -1
    for gap, code in zip(gap_N.tolist(), code_N.tolist(), strict=True):
        place += gap + 1
        row, column = divmod(place, len(x_I))
        y_O[row] += table_C[code].double() * x_I[column].double()
    return y_O
