"""How a parameter stored in half precision takes up an update computed in float32.

To nearest, an update below half a unit in the last place is lost: `1 - 0.001` stays 1 in bfloat16 for ever.
Stochastic rounding keeps it in expectation (Zamirai et al. 2020, arXiv:2010.06192); Kahan summation keeps
what was lost in a second tensor of the same type (Kahan 1965). Parameters in float32 or float64 are updated
in place and never pass through here.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fairway.core.seed import generator


class Rounding(ABC):
    """From stored to wide and back."""

    def widen(self, name: str, stored: Tensor) -> Tensor:  # noqa: ARG002
        """The weight to compute with; `stored` itself where it is wide already."""
        return stored.float() if stored.dtype in (torch.bfloat16, torch.float16) else stored

    @abstractmethod
    def store(self, name: str, stored: Tensor, wide: Tensor) -> None:
        """Writes the new weight into `stored`."""

    def advance(self) -> None:  # noqa: B027
        """Called once after each step."""

    def state(self) -> dict[str, Tensor]:
        """Live tensors that a resumed run needs, by name."""
        return {}


class Nearest(Rounding):
    """To the nearest value; small updates are lost."""

    def store(self, name: str, stored: Tensor, wide: Tensor) -> None:  # noqa: ARG002
        stored.copy_(wide)


class Stochastic(Rounding):
    """Up or down at random so that the expectation is exact; draws depend on seed, step and name."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._step = torch.zeros((), dtype=torch.int64)

    def store(self, name: str, stored: Tensor, wide: Tensor) -> None:
        assert stored.dtype == torch.bfloat16
        source = generator(self.seed, "rounding", int(self._step), name, device=stored.device)
        stored.copy_(stochastic_bfloat16(wide, source))

    def advance(self) -> None:
        self._step += 1

    def state(self) -> dict[str, Tensor]:
        return {"step": self._step}


class Kahan(Rounding):
    """To the nearest, with the remainder kept in a second tensor of the stored type."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        half = (torch.bfloat16, torch.float16)
        self._lost = {name: torch.zeros_like(data) for name, data in parameters.items() if data.dtype in half}

    def widen(self, name: str, stored: Tensor) -> Tensor:
        return stored.float() + self._lost[name] if name in self._lost else stored

    def store(self, name: str, stored: Tensor, wide: Tensor) -> None:
        stored.copy_(wide)
        self._lost[name].copy_(wide - stored.float())

    def state(self) -> dict[str, Tensor]:
        return {f"{name}/lost": tensor for name, tensor in self._lost.items()}


def stochastic_bfloat16(wide: Tensor, source: torch.Generator) -> Tensor:
    """float32 to bfloat16, upwards with the probability that makes the expectation exact.

    Finite values stay finite. Adds 16 random bits below the bfloat16 mantissa and cuts them off.
    """
    noise = torch.randint(0, 1 << 16, wide.shape, generator=source, dtype=torch.int32, device=wide.device)
    bits = wide.contiguous().view(torch.int32)
    moved = ((bits + noise) & -65536).view(torch.float32)
    return torch.where(torch.isfinite(moved), moved, wide).to(torch.bfloat16)
