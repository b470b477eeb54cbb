"""Declared FLOPs against a counter of matrix products."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from fairway.model.parts import Part


def counted_flops(call: Callable[[], object], tokens: int) -> float:
    """FLOPs of the matrix products and convolutions of a call, per token."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / tokens


def check_flops(
    part: Part, call: Callable[[], object], batch: int, length: int, *, low: float = 0.4, high: float = 2.5
) -> None:
    """Declared FLOPs over counted ones lie in [low, high]: causal masks halve, scans escape the counter."""
    counted, declared = counted_flops(call, batch * length), part.flops(length)
    assert declared > 0 or not counted, "no FLOPs are declared"
    if counted:
        ratio = declared / counted
        assert low <= ratio <= high, f"{declared:.3g} FLOPs a token are declared, {counted:.3g} are counted"
