"""Which step each row of a weight gets."""

import numpy as np
from torch import Tensor

from fairway.artifact.packing.rows import RESOLUTION, nearest_exponents
from fairway.compress.parts import deviations


def row_exponents(weight_RC: Tensor, strength: float, power: float) -> np.ndarray:
    """Exponents, on the grid of the packing `rows`, of the steps `2^strength dev_r^power dev^(1 - power)`.

    dev_r is the root mean square of row r, dev that of the whole weight.
    """
    deviation_R = deviations(weight_RC).numpy()
    whole = float(np.sqrt(np.mean(deviation_R**2)))
    return nearest_exponents(2.0**strength * deviation_R**power * whole ** (1 - power), RESOLUTION)
