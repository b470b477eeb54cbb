"""Where learned step sizes and positions begin: initial biases of Delta, and rotations.

Shape key: B batch, T time, H heads, K head width.
"""

import math

import torch
from torch import Tensor


def initial_step_bias(count: int, generator: torch.Generator) -> Tensor:
    """Biases b with `softplus(b)` log-uniform in [0.001, 0.1], clamped below at 0.0001, float64.

    Gu & Dao 2023 (arXiv:2312.00752).
    """
    low, high = math.log(1e-3), math.log(1e-1)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device)
    step = (low + (high - low) * uniform).exp().clamp_min(1e-4)
    return step + (-torch.expm1(-step)).log()


def rotated(x_BTHK: Tensor, positions_BT: Tensor, frequencies: Tensor) -> Tensor:
    """Heads turned by `position * frequency`, one frequency for each pair (i, i + K/2) of channels.

    Angles are taken in float64, so that far positions lose nothing. Su et al. 2021 (arXiv:2104.09864).
    """
    angle_BT1R = (positions_BT.double().unsqueeze(-1) * frequencies.double()).unsqueeze(2)
    cos, sin = angle_BT1R.cos().to(x_BTHK.dtype), angle_BT1R.sin().to(x_BTHK.dtype)
    first, second = x_BTHK.chunk(2, -1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)
