"""Batch size and context length over the run."""

import pytest
from pydantic import ValidationError

from fairway.train.stages import StagesConfig


def test_each_stage_begins_where_it_says() -> None:
    stages = StagesConfig(batch=((0, 0.5), (0.25, 1.0)), context=((0, 0.25), (0.5, 0.5), (0.75, 1.0)))
    found = [stages.shape(16, 64, progress) for progress in (0.0, 0.2499, 0.25, 0.5, 0.74, 0.75, 1.0)]
    assert found == [(8, 16), (8, 16), (16, 16), (16, 32), (16, 32), (16, 64), (16, 64)]
    assert stages.shapes(16, 64) == [(8, 16), (16, 16), (16, 32), (16, 64)]


def test_without_stages_nothing_changes() -> None:
    assert StagesConfig().shapes(7, 33) == [(7, 33)]
    assert StagesConfig().shape(7, 33, 0.9) == (7, 33)


@pytest.mark.parametrize(
    ("name", "stairs", "told"),
    [
        ("batch", [[0.1, 1]], "0 first"),
        ("batch", [[0, 1], [0.5, 1], [0.5, 2]], "rising"),
        ("context", [[0, 1], [1, 1]], "below 1"),
        ("context", [[0, 2]], "outside"),
        ("batch", [[0, 0]], "outside"),
    ],
)
def test_stairs_that_cannot_be_climbed_are_refused(name: str, stairs: list, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        StagesConfig.model_validate({name: stairs})
