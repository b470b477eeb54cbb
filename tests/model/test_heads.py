"""Heads that do not fit are refused with the numbers that would."""

import re

import pytest

from fairway.core.config import Slot
from fairway.model.heads import check_heads
from fairway.model.parts import MixerConfig

MIXER = Slot("fairway.model.mixer", "attention")
WITH_HEADS = [kind for kind in MIXER.kinds() if "heads" in MIXER.config(kind).model_fields]


def of(kind: str, heads: int) -> MixerConfig:
    config = MIXER.config(kind).read({"kind": kind, "heads": heads})
    assert isinstance(config, MixerConfig)
    return config


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_the_numbers_named_are_those_that_work(kind: str) -> None:
    with pytest.raises(ValueError, match="7 heads") as refused:
        of(kind, 7).build(24)
    named = {int(number) for number in re.findall(r"\d+", str(refused.value).partition(";")[2])}
    assert named
    works = set()
    for heads in range(1, 24):
        try:
            of(kind, heads).build(24)
        except ValueError:
            continue
        works.add(heads)
    assert {heads for heads in named if heads < 24} == works


def test_heads_of_odd_width_are_refused_where_pairs_are_turned() -> None:
    check_heads(3, 9, "the width")
    with pytest.raises(ValueError, match="4 heads of even width do not divide the width 12; 1, 2, 3, 6 would"):
        check_heads(4, 12, "the width", even=True)
