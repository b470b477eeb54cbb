"""Low-rank correction: exactly what singular values say is left, smaller outputs' errors at the same step."""

import pytest
import torch

from compress.examples import half_error, hessian, layer
from fairway.artifact.format import unpack
from fairway.compress.parts import Piece, Statistics
from fairway.compress.quantize.lqer import Config, correction
from fairway.model.parts import Role


def piece(rank: int, weighting: str, strength: float = -0.5) -> tuple[float, float]:
    """Error of the outputs and of the weights after a round trip through the packing."""
    weight_RC, x_NC = layer(rows=24, columns=48)
    statistics = Statistics(len(x_NC), x_NC.T @ x_NC)
    subject = Piece("w", Role.MATRIX, (24, 48), weight_RC.float(), statistics)
    packed = (
        Config.model_validate({"kind": "lqer", "rank": rank, "weighting": weighting})
        .build()
        .quantize(subject, strength)
    )
    change_RC = unpack("w", packed).double() - weight_RC
    return half_error(change_RC, hessian(x_NC)), float(change_RC.square().sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_left_is_the_squares_of_the_later_singular_values(weighted: bool) -> None:
    error_RC, x_NC = layer(rows=20, columns=30)
    factor_CC = torch.linalg.cholesky(hessian(x_NC)) if weighted else torch.eye(30, dtype=torch.float64)
    left_RK, right_KC = correction(error_RC, factor_CC, 5)
    left_over = float(((error_RC - left_RK @ right_KC) @ factor_CC).square().sum())
    sizes = torch.linalg.svdvals(error_RC @ factor_CC)
    assert left_over == pytest.approx(float(sizes[5:].square().sum()), rel=1e-9)
    assert torch.linalg.matrix_rank(left_RK @ right_KC) == 5


def test_a_full_rank_leaves_only_the_rounding_of_the_factors() -> None:
    rounded, corrected = piece(0, "none")[1], piece(24, "none")[1]
    assert corrected < 0.01 * rounded


def test_each_weighting_is_best_at_the_error_it_weighs() -> None:
    plain, outputs = piece(4, "none"), piece(4, "hessian")
    rounded, inputs = piece(0, "none"), piece(4, "inputs")
    assert plain[1] < min(outputs[1], inputs[1], rounded[1])
    assert outputs[0] < min(plain[0], inputs[0])
    assert inputs[0] < 0.5 * rounded[0]


def test_pruned_weights_stay_zero() -> None:
    weight_RC, _ = layer(rows=24, columns=48)
    kept_RC = weight_RC.abs() > 0.5
    packed = Config().build().quantize(Piece("w", Role.MATRIX, (24, 48), weight_RC.float(), None, kept_RC), -1.0)
    assert not unpack("w", packed)[~kept_RC].any()
