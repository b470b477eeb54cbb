"""Curves by position: their mean is the score, their bins whole, and extensions differ only beyond what was trained."""

import math

import numpy as np
import pytest

from fairway.core.errors import EvaluationError
from fairway.evaluate.by_position import EXTENSIONS, by_position, compare_extensions
from fairway.serve.model import Model
from serve.tiny import TEXTS

LONG = [b"hello world, hello wind: a text that is longer than any window here. " * 6, b"hello, schoene Gruesse " * 9]


def test_the_mean_of_a_curve_is_the_score_of_the_text(model: Model) -> None:
    curve = by_position(model, TEXTS, 12, bins=5)
    score = model.score(TEXTS, stride=12, documents="concatenated")
    assert sum(curve.targets) == score.tokens
    assert curve.mean() == pytest.approx(score.bits_per_byte, rel=1e-6)


def test_bins_of_one_hold_the_nats_of_each_position(model: Model) -> None:
    length = 12
    curve = by_position(model, LONG, length, bins=length)
    boundary = model.tokenizer.boundary
    tokens = [boundary]
    for text in LONG:
        tokens += [*model.tokenizer.encode(text).tolist(), boundary]
    targets = len(tokens) - 1
    ratio = targets / sum(map(len, LONG))
    third = []
    for start in range(0, targets, length):
        window = tokens[start : start + length + 1]
        if len(window) > 3:
            third.append(-float(model.logits(window[:3])[2].log_softmax(-1)[window[3]]))
    assert curve.position == tuple(range(1, length + 1))
    assert curve.targets[2] == len(third)
    assert curve.bits_per_byte[2] == pytest.approx(np.mean(third) / math.log(2) * ratio, rel=1e-5)


def test_a_curve_of_a_part_is_the_mean_of_its_bins(model: Model) -> None:
    curve = by_position(model, LONG, 12, bins=4)
    below, above = curve.mean(0, 6.5), curve.mean(6.5)
    share = sum(curve.targets[:2]) / sum(curve.targets)
    assert share * below + (1 - share) * above == pytest.approx(curve.mean())
    assert math.isnan(curve.mean(100))


def test_each_extension_gives_its_own_curve_and_none_agrees_with_the_trained_model(model: Model) -> None:
    curves = compare_extensions(model, LONG, 48, bins=48)
    assert tuple(curve.name for curve in curves) == EXTENSIONS
    assert len({curve.mean() for curve in curves}) == len(EXTENSIONS)
    by_name = {curve.name: curve for curve in curves}
    first = [curve.bits_per_byte[0] for curve in curves if curve.name != "yarn"]
    assert first == pytest.approx([first[0]] * len(first), rel=1e-5)
    trained = by_name["none"].bits_per_byte[:12]
    assert by_name["dynamic_ntk"].bits_per_byte[:12] == pytest.approx(trained, rel=1e-5)
    assert by_name["position_interpolation"].bits_per_byte[:12] != pytest.approx(trained, rel=1e-3)


def test_text_shorter_than_one_window_is_refused(model: Model) -> None:
    with pytest.raises(EvaluationError, match="at least one window of 500"):
        by_position(model, [b"hello"], 500)
