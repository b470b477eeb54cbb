"""Which step each row of a weight gets, and rounding to nearest with it."""

import numpy as np
import torch
from torch import Tensor

from fairway.artifact.packing.rows import RESOLUTION, nearest_exponents, pack, steps_of
from fairway.artifact.parts import Packed
from fairway.compress.parts import Piece, Quantizer, deviations, removed


def row_exponents(weight_RC: Tensor, strength: float, power: float) -> np.ndarray:
    """Exponents, on the grid of the packing `rows`, of the steps `2^strength dev_r^power dev^(1 - power)`.

    dev_r is the root mean square of row r, dev that of the whole weight.
    """
    deviation_R = deviations(weight_RC).numpy()
    whole = float(np.sqrt(np.mean(deviation_R**2)))
    return nearest_exponents(2.0**strength * deviation_R**power * whole ** (1 - power), RESOLUTION)


class RowRounding(Quantizer):
    """Rounds to the nearest multiple of each row's step; packs as `rows`."""

    def __init__(self, power: float) -> None:
        self.power = power

    def quantize(self, piece: Piece, strength: float) -> Packed:
        weight_RC = removed(piece.weight_RC, piece.kept_RC)
        exponents_R = row_exponents(weight_RC, strength, self.power)
        steps_R = torch.from_numpy(steps_of(exponents_R))
        codes_RC = torch.round(weight_RC / steps_R[:, None]).to(torch.int32).numpy()
        return pack(codes_RC, exponents_R, piece.shape)
