"""Expected rises: sums of half the curvature times the squared weight, least first, near what removal really costs."""

import copy

import pytest
import torch

from compress.examples import model, text
from compress.training import loop
from fairway.compress.curvature import fisher_diagonal, mean_loss, sequence_losses
from fairway.compress.masks import count_of, prunable
from fairway.compress.saliency import SHARES, saliencies
from fairway.core.errors import ConfigError


def test_rises_are_sums_of_the_least_saliencies_and_the_last_row_ranks_all_together() -> None:
    subject, calibration = model(), text()
    rows = saliencies(subject, calibration)
    named = dict(subject.named_parameters())
    parameters = {name: named[name] for name in prunable(subject)}
    assert [row.name for row in rows] == [*parameters, "all"]
    curvature = fisher_diagonal(sequence_losses(subject, calibration, sampled=False), parameters)
    everything: list[float] = []
    tokens = calibration[0].shape[1] - 1
    for row in rows[:-1]:
        weight = parameters[row.name].detach().double()
        scores = sorted((0.5 * tokens * curvature[row.name].double() * weight.square()).flatten().tolist())
        everything += scores
        for share, rise, by_size in zip(SHARES, row.rises, row.by_size, strict=True):
            assert rise == pytest.approx(sum(scores[: count_of(share, len(scores))]), rel=1e-9)
            assert by_size >= rise
        assert row.total == pytest.approx(sum(scores), rel=1e-9)
    assert rows[-1].weights == len(everything)
    assert rows[-1].rises[1] == pytest.approx(sum(sorted(everything)[: len(everything) // 2]), rel=1e-9)
    assert rows[-1].rises[1] <= sum(row.rises[1] for row in rows[:-1]) + 1e-12


def test_a_matrix_said_to_matter_more_really_costs_more() -> None:
    trained = loop(60)
    trained.run([])
    subject, calibration = trained.model.eval(), text()
    rows = saliencies(subject, calibration)[:-1]
    subject.requires_grad_(False)
    before, costs = float(mean_loss(subject, calibration)), {}
    for row in rows:
        without = copy.deepcopy(subject)
        with torch.no_grad():
            dict(without.named_parameters())[row.name].zero_()
        costs[row.name] = float(mean_loss(without, calibration)) - before
    ranked = sorted(rows, key=lambda row: row.total)
    half = len(ranked) // 2
    assert sum(costs[row.name] for row in ranked[:half]) < sum(costs[row.name] for row in ranked[-half:])


def test_zeros_are_counted_and_text_is_needed() -> None:
    subject = model()
    name, weight_RC = next(iter(prunable(subject).items()))
    weight_RC[: len(weight_RC) // 2] = 0
    row = next(row for row in saliencies(subject, text()) if row.name == name)
    assert row.zeros == pytest.approx(0.5, abs=0.05)
    assert row.rises[0] == row.rises[1] == 0
    with pytest.raises(ConfigError, match="no calibration text"):
        saliencies(subject, [])
