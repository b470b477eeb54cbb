"""The column loop against slow float64 transcriptions of the equations."""

import pytest
import torch
from torch import Tensor

from compress.examples import half_error, hessian, layer
from fairway.compress.solve import damped, factors, n_of_m, reconstruct, unstructured
from fairway.core.errors import TrainingError


def sequential_obs(weight_RC: Tensor, hessian_CC: Tensor, kept_RC: Tensor) -> Tensor:
    """Optimal brain surgeon with a given mask, each row by itself, left to right; corrections go to the
    right only.
    """
    result_RC = weight_RC.clone()
    for row in range(len(weight_RC)):
        for column in range(weight_RC.shape[1]):
            rest = slice(column, None)
            inverse = torch.linalg.inv(hessian_CC[rest, rest])
            target = result_RC[row, column] if kept_RC[row, column] else torch.zeros((), dtype=torch.float64)
            error = (result_RC[row, column] - target) / inverse[0, 0]
            result_RC[row, rest] -= error * inverse[0]
    return result_RC


def transcribed(weight_RC: Tensor, hessian_CC: Tensor, sparsity: float, block: int, step: float | None) -> Tensor:
    """The published loop, one column after another, with masks chosen in each block."""
    work = weight_RC.clone()
    upper = torch.linalg.cholesky(torch.linalg.inv(damped(hessian_CC, 0.01)), upper=True)
    columns = work.shape[1]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        score = work[:, start:stop] ** 2 / upper.diagonal()[start:stop] ** 2
        removed = torch.zeros_like(score, dtype=torch.bool).flatten()
        removed[score.T.flatten().argsort()[: int(sparsity * score.numel())]] = True
        removed_RB = removed.view(stop - start, len(work)).T
        errors = torch.zeros_like(score)
        for column in range(start, stop):
            q = torch.where(removed_RB[:, column - start], 0.0, work[:, column])
            if step is not None:
                q = torch.round(q / step) * step
            errors[:, column - start] = (work[:, column] - q) / upper[column, column]
            work[:, column:stop] -= errors[:, column - start, None] * upper[column, column:stop]
            work[:, column] = q
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    return work


@pytest.mark.parametrize("block", [16, 40, 128])
def test_the_root_is_upper_and_its_inverse_is_the_cholesky_factor_of_the_inverse(block: int) -> None:
    _, x_NC = layer(columns=100)
    root_CC, uppers = factors(hessian(x_NC), 0.01, block)
    root_CC = root_CC.triu()
    assert torch.allclose(root_CC @ root_CC.T, damped(hessian(x_NC), 0.01), rtol=1e-9, atol=1e-12)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped(hessian(x_NC), 0.01)), upper=True)
    assert torch.allclose(torch.linalg.inv(root_CC), expected, rtol=1e-8, atol=1e-10)
    for start, upper_BB in zip(range(0, 100, block), uppers, strict=True):
        here = slice(start, start + block)
        assert torch.allclose(upper_BB, expected[here, here], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("block", [16, 64, 128])
def test_a_given_mask_gives_sequential_obs(block: int) -> None:
    weight_RC, x_NC = layer(5, 40)
    kept_RC = torch.rand(weight_RC.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    found = reconstruct(weight_RC, hessian(x_NC), kept_RC=kept_RC, block=block).weight_RC
    expected = sequential_obs(weight_RC, damped(hessian(x_NC), 0.01), kept_RC)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)
    assert not found[~kept_RC].any()


@pytest.mark.parametrize("block", [16, 48, 128])
@pytest.mark.parametrize("step", [None, 0.3])
def test_the_fast_loop_is_the_published_loop(block: int, step: float | None) -> None:
    weight_RC, x_NC = layer(24, 100)
    found = reconstruct(
        weight_RC,
        hessian(x_NC),
        selection=unstructured(0.5),
        round_column=None if step is None else lambda column_R, _: torch.round(column_R / step) * step,
        block=block,
    )
    expected = transcribed(weight_RC, hessian(x_NC), 0.5, block, step)
    assert torch.allclose(found.weight_RC, expected, rtol=1e-8, atol=1e-10)


def test_half_the_sum_of_squared_errors_is_the_loss_under_the_damped_hessian() -> None:
    weight_RC, x_NC = layer()
    hessian_CC = hessian(x_NC)
    pruned = reconstruct(weight_RC, hessian_CC, selection=unstructured(0.6), block=32)
    rounded = reconstruct(weight_RC, hessian_CC, round_column=lambda w, _: torch.round(w))
    for found in (pruned, rounded):
        change_RC = found.weight_RC - weight_RC
        assert found.loss == pytest.approx(half_error(change_RC, damped(hessian(x_NC), 0.01)), rel=1e-9)


def test_rounding_with_uncorrelated_inputs_is_rounding_to_nearest() -> None:
    weight_RC, _ = layer()
    found = reconstruct(weight_RC, torch.eye(64, dtype=torch.float64), round_column=lambda w, _: torch.round(w * 4) / 4)
    assert torch.equal(found.weight_RC, torch.round(weight_RC * 4) / 4)


def test_error_feedback_halves_the_error_of_rounding() -> None:
    """Ratio of layer errors over 20 correlated instances at 3 bits; the mean lies clearly below 0.7."""
    ratios = []
    for seed in range(20):
        weight_RC, x_NC = layer(seed=seed)
        step = weight_RC.abs().amax(dim=1) / 3
        found = reconstruct(weight_RC, hessian(x_NC), round_column=lambda w, _, s=step: torch.round(w / s) * s)
        plain = torch.round(weight_RC / step[:, None]) * step[:, None]
        errors = [half_error(candidate - weight_RC, hessian(x_NC)) for candidate in (found.weight_RC, plain)]
        ratios.append(errors[0] / errors[1])
    assert sum(ratios) / 20 < 0.7
    assert max(ratios) < 1.0


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_every_block_loses_exactly_its_share(sparsity: float) -> None:
    weight_RC, x_NC = layer(16, 96)
    found = reconstruct(weight_RC, hessian(x_NC), selection=unstructured(sparsity), block=32)
    for part in found.weight_RC.split(32, dim=1):
        assert int((part == 0).sum()) == int(sparsity * 16 * 32)
    assert torch.equal(found.kept_RC, found.weight_RC != 0)


@pytest.mark.parametrize(("zeros", "group"), [(2, 4), (4, 8), (1, 2)])
def test_patterns_leave_n_of_every_m_inputs(zeros: int, group: int) -> None:
    weight_RC, x_NC = layer(8, 64)
    found = reconstruct(weight_RC, hessian(x_NC), selection=n_of_m(zeros, group), block=32)
    assert bool(((found.weight_RC.view(8, -1, group) == 0).sum(dim=2) == zeros).all())
    magnitude_RC = weight_RC.clone().view(8, -1, group)
    magnitude_RC.scatter_(2, magnitude_RC.abs().argsort(dim=2)[:, :, :zeros], 0)
    plain = magnitude_RC.view(8, 64) - weight_RC
    assert half_error(found.weight_RC - weight_RC, hessian(x_NC)) < half_error(plain, hessian(x_NC))


def test_the_mask_of_a_small_problem_is_near_the_best_of_all_masks() -> None:
    """One row of eight inputs, half removed: brute force over all 70 masks with a least-squares refit is
    the bound.
    """
    from itertools import combinations

    shares = []
    for seed in range(10):
        weight_RC, x_NC = layer(1, 8, seed=seed)
        hessian_CC = hessian(x_NC)
        found = reconstruct(weight_RC, hessian_CC, selection=unstructured(0.5), block=16)
        losses = []
        for kept in combinations(range(8), 4):
            index = list(kept)
            refit = torch.linalg.lstsq(x_NC[:, index], x_NC @ weight_RC[0]).solution
            change_RC = -weight_RC.clone()
            change_RC[0, index] += refit
            losses.append(half_error(change_RC, hessian_CC))
        mine = half_error(found.weight_RC - weight_RC, hessian_CC)
        assert mine >= min(losses) - 1e-9
        shares.append(sum(loss < mine for loss in losses) / len(losses))
    assert sum(shares) / len(shares) < 0.35


def test_dead_inputs_lose_their_weights_and_harm_nobody() -> None:
    weight_RC, x_NC = layer(8, 32)
    x_NC[:, [3, 20]] = 0
    found = reconstruct(weight_RC, hessian(x_NC), round_column=lambda w, _: torch.round(w * 8) / 8)
    assert not found.weight_RC[:, [3, 20]].any()
    assert bool(found.weight_RC.isfinite().all())


def test_a_hessian_that_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(TrainingError, match="cannot be inverted"):
        reconstruct(torch.ones(2, 3), torch.tensor([[1.0, 5, 0], [5, 1, 0], [0, 0, 1]]))
