"""Speed: what is measured grows with the work that is done."""

import pytest

from fairway.core.errors import ConfigError
from fairway.evaluate.speed import measure
from fairway.serve.model import Model
from laws.levels import at_level


def test_scoring_in_batches_is_faster_than_decoding_one_by_one_through_pytorch(model: Model) -> None:
    with at_level(None):
        speed = measure(model, batch=8, tokens=16, repeats=3)
    assert speed.scoring > speed.decoding > 0
    assert 0 < speed.first_token < 5
    assert (speed.threads, speed.device) == (1, "cpu")


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"tokens": 0}, {"repeats": 0}])
def test_measuring_nothing_is_refused(model: Model, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=0"):
        measure(model, **wrong)
