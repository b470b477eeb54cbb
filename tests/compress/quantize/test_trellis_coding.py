"""Trellis-coded quantisation against rate-distortion theory, uniform rounding, and its own packing."""

import math

import numpy as np
import pytest
import torch

from compress.examples import half_error, hessian, layer
from fairway.artifact.format import unpack
from fairway.artifact.packing.trellis import transitions
from fairway.artifact.parts import Packed
from fairway.artifact.steps import steps_of
from fairway.artifact.table import Histogram
from fairway.compress.parts import Piece, Quantizer, Statistics
from fairway.compress.plan import CompressConfig
from fairway.model.parts import Role


def made(**settings: object) -> Quantizer:
    return CompressConfig.read({"quantize": settings}).quantize.build()


def gaussian(rows: int = 512, columns: int = 64) -> Piece:
    random = torch.Generator().manual_seed(3)
    return Piece("w", Role.MATRIX, (rows, columns), torch.randn(rows, columns, generator=random) * 0.1)


def rate(packed: Packed) -> float:
    return sum(Histogram.of(array).entropy() for array in packed.arrays.values()) / packed.size


def above_the_bound(quantizer: Quantizer, strength: float) -> float:
    """Bits a weight beyond `1/2 log2(variance / error)`, the least for Gaussian weights."""
    piece = gaussian()
    packed = quantizer.quantize(piece, strength)
    error = float((unpack("w", packed) - piece.weight_RC).double().square().mean())
    return rate(packed) - 0.5 * math.log2(float(piece.weight_RC.double().square().mean()) / error)


@pytest.mark.parametrize("strength", [-1.5, -0.5])
def test_gaussian_weights_take_few_bits_more_than_theory_allows(strength: float) -> None:
    uniform = above_the_bound(made(kind="rtn"), strength)
    path = above_the_bound(made(kind="trellis", memory=6), strength)
    assert uniform > 0.24
    assert 0.0 < path < 0.13
    assert uniform - path > 0.15


def test_more_memory_comes_nearer_to_the_bound() -> None:
    gaps = [above_the_bound(made(kind="trellis", memory=memory), -1.0) for memory in (2, 4, 8)]
    assert gaps == sorted(gaps, reverse=True)


def test_decoding_one_by_one_gives_the_tensor() -> None:
    """The packing reads all columns side by side; here a plain loop follows each path by itself."""
    weight_RC = gaussian(40, 16).weight_RC
    kept_RC = torch.rand(40, 16, generator=torch.Generator().manual_seed(1)) < 0.6
    packed = made(kind="trellis", memory=4).quantize(Piece("w", Role.MATRIX, (40, 16), weight_RC, None, kept_RC), -1.0)
    steps = steps_of(packed.arrays["steps"].astype(np.int64) + packed.settings["base"])
    codes = iter(packed.arrays["codes0"].tolist())
    by_place = {(r, c): next(codes) for r in range(40) for c in range(16) if kept_RC[r, c]}
    restored = unpack("w", packed)
    for column in range(16):
        state = 0
        for row in range(40):
            if (row, column) not in by_place:
                assert restored[row, column] == 0
                continue
            code = by_place[row, column]
            assert float(restored[row, column]) == pytest.approx(float(steps[row]) / 2 * (2 * code + (state & 1)))
            state = int(transitions(4)[state, code & 1])


def test_error_feedback_lowers_the_error_of_outputs_at_the_same_bits() -> None:
    ratios = []
    for seed in range(5):
        weight_RC, x_NC = layer(96, 64, seed=seed)
        weight_RC = weight_RC.float()
        statistics = Statistics(len(x_NC), x_NC.T @ x_NC)
        fed, plain = (
            made(kind="trellis").quantize(Piece("w", Role.MATRIX, (96, 64), weight_RC, given), -1.0)
            for given in (statistics, None)
        )
        assert rate(fed) == pytest.approx(rate(plain), abs=0.1)
        errors = [half_error((unpack("w", p) - weight_RC).double(), hessian(x_NC)) for p in (fed, plain)]
        ratios.append(errors[0] / errors[1])
    assert max(ratios) < 0.7


def test_rows_that_the_loss_feels_more_get_finer_steps() -> None:
    weight_RC, x_NC = layer(64, 64)
    felt_R = torch.ones(64).double()
    felt_R[:32] = 16.0
    statistics = Statistics(len(x_NC), x_NC.T @ x_NC, felt_R)
    packed = made(kind="trellis", felt_power=1.0).quantize(
        Piece("w", Role.MATRIX, (64, 64), weight_RC.float(), statistics), -2.0
    )
    steps = packed.arrays["steps"]
    assert (steps[:32] == steps[0]).all()
    assert (steps[32:] - steps[0] == 16).all(), "two octaves in steps of an eighth"
    assert packed.settings["classes"] > 1, "rows of so different spread pay for frequencies of their own"
