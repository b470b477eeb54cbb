"""Which step each row of a weight gets, and rounding to nearest with it."""

import numpy as np
import torch
from torch import Tensor

from fairway.artifact.packing.rows import pack
from fairway.artifact.parts import Packed
from fairway.artifact.steps import OCTAVES, RESOLUTION, nearest_exponents, steps_of
from fairway.compress.parts import Piece, Quantizer, deviations, removed

_LEAST_FELT = 1e-3


def row_exponents(weight_RC: Tensor, strength: float, power: float) -> np.ndarray:
    """Exponents, on the grid of the packing `rows`, of the steps `2^strength dev_r^power dev^(1 - power)`.

    dev_r is the root mean square of row r, dev that of the whole weight.
    """
    deviation_R = deviations(weight_RC).numpy()
    whole = float(np.sqrt(np.mean(deviation_R**2)))
    return nearest_exponents(2.0**strength * deviation_R**power * whole ** (1 - power), RESOLUTION)


def row_steps(weight_RC: Tensor, strength: float, power: float) -> Tensor:
    """The steps (R) that `row_exponents` stand for, in float32, by operations that a compiled graph can hold."""
    deviation_R = deviations(weight_RC)
    whole = deviation_R.square().mean().sqrt()
    octave_R = (strength + power * deviation_R.log2() + (1 - power) * whole.log2()).clamp(-OCTAVES, OCTAVES)
    return torch.exp2(torch.round(octave_R * RESOLUTION) / RESOLUTION).float()


def felt_exponents(weight_RC: Tensor, strength: float, felt_R: Tensor | None, power: float) -> np.ndarray:
    """Exponents, on the grid of the packing `rows`, of steps `2^strength dev_r^(1 - power) felt_r^(-power / 2)`.

    Each factor is relative to its geometric mean over the rows, then the whole is scaled to that of dev_r. No step is
    more than twice a row's deviation, nor is any row counted as felt less than a thousandth of the mean.
    """
    deviation_R = deviations(weight_RC).numpy()
    mean = float(np.log2(deviation_R).mean())
    exponent_R = np.log2(deviation_R) - mean
    if felt_R is not None and float(felt_R.max()) > 0:
        felt = np.log2(np.maximum(felt_R.double().numpy(), _LEAST_FELT * float(felt_R.mean())))
        exponent_R = (1 - power) * exponent_R - power / 2 * (felt - felt.mean())
    coarsest_R = np.log2(deviation_R) + np.maximum(1.0, strength)
    return nearest_exponents(2.0 ** np.minimum(strength + mean + exponent_R, coarsest_R), RESOLUTION)


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
