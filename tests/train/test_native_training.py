"""Training by the kernels and by PyTorch alone: the same loss curve, up to what another seed changes it by."""

import statistics
from collections.abc import Callable

import pytest

from fairway.core import native
from fairway.model.parts import initialise
from fairway.train.loop import Loop
from laws.levels import at_level

STEPS, LAST, SEEDS = 200, 50, 8


@pytest.mark.slow
def test_two_hundred_steps_end_where_pytorch_ends(make_loop: Callable[..., Loop]) -> None:
    def curve(seed: int, level: str | None) -> list[float]:
        with at_level(level):
            loop = make_loop("precision.kind=bf16", steps=STEPS, folder=f"{level}-{seed}")
            initialise(loop.model, seed)
            return [loop.advance(loop.agree())["train/loss"] for _ in range(STEPS)]

    def end(losses: list[float]) -> float:
        return statistics.mean(losses[-LAST:])

    plain = [curve(seed, None) for seed in range(SEEDS)]
    ours = [curve(seed, native.level() or "portable") for seed in range(SEEDS)]
    noise = statistics.stdev(map(end, plain))
    assert ours != plain
    assert abs(statistics.mean(end(a) - end(b) for a, b in zip(ours, plain, strict=True))) < noise
    assert max(abs(a[step] / b[step] - 1) for a, b in zip(ours, plain, strict=True) for step in range(10)) < 0.02
    assert all(losses[-1] < losses[0] / 2 for losses in (*plain, *ours))
