"""Running a test on every path of the native kernels that this machine has."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fairway.core import native
from fairway.ops.add_rms_norm import native as add_rms_norm
from fairway.ops.gate import apart as gate_apart
from fairway.ops.layer_norm import native as layer_norm
from fairway.ops.norm_rotate import native as norm_rotate
from fairway.ops.relu2 import native as relu2
from fairway.ops.rms_norm import native as rms_norm
from fairway.ops.rotate import native as rotate

EVERY_LEVEL = [None, *native.LEVELS]


@contextmanager
def at_level(level: str | None) -> Iterator[None]:
    """The block runs with one instruction level forced, or without kernels for None; skips what cannot run here."""
    with pytest.MonkeyPatch.context() as patch:
        _forget()
        patch.setenv("FAIRWAY_NATIVE", "1")
        best = native.level()
        if level is None:
            patch.setenv("FAIRWAY_NATIVE", "0")
        elif best is None or native.LEVELS.index(level) > native.LEVELS.index(best):
            pytest.skip(f"this machine or build has no {level} kernels")
        else:
            patch.setenv("FAIRWAY_LEVEL", level)
        for op in (add_rms_norm, gate_apart, layer_norm, norm_rotate, relu2, rms_norm, rotate):
            patch.setattr(op, "FEWEST_NUMBERS", 0)
        _forget()
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    native.level.cache_clear()
    native.kernel.cache_clear()
