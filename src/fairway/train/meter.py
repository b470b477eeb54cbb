"""What a step's loss and seconds mean: bits per byte, tokens per second, the share of the machine's arithmetic.

`bpb = nats / (ln 2 * bytes per token)`; `MFU = 3 * forward FLOPs per token * tokens / seconds / peak`, a backward
pass costing twice the forward. Bits per byte of training text are an estimate by the text's mean bytes per token; a
score comes from `evaluate` alone.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Meter:
    """Figures of one run."""

    bytes_per_token: float
    flops_per_token: float
    """Of the forward pass."""
    peak: float | None = None
    """Measured FLOPs per second of matrix products in the precision of training; None where not measured."""

    def bits_per_byte(self, nats: float) -> float:
        """Bits per byte of a mean loss in nats per token."""
        return nats / math.log(2) / self.bytes_per_token

    def figures(self, nats: float, tokens: int, seconds: float) -> dict[str, float]:
        """The figures of a step."""
        rate = tokens / max(seconds, 1e-9)
        figures = {"train/bpb": self.bits_per_byte(nats), "tokens/s": rate}
        return figures | ({"mfu": 3 * self.flops_per_token * rate / self.peak} if self.peak else {})
