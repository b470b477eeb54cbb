import pytest

from fairway.model.census import parameters_by_part, part_of_each_parameter
from fairway.model.lm import ModelConfig


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_one_part_and_shared_ones_count_once(tied):
    config = ModelConfig.read({"width": 48, "depth": 3, "head": {"tied": tied}})
    model = config.skeleton(300)
    counts = parameters_by_part(model)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert counts["embedding"] == 300 * 48
    assert counts.get("head", 0) == (0 if tied else 300 * 48)
    assert counts["ffn"] == 3 * 8 * 48 * 48


def test_a_norm_inside_a_mixer_belongs_to_the_mixer():
    model = ModelConfig.read({"width": 48, "depth": 1}).skeleton(300)
    parts = part_of_each_parameter(model)
    assert all(part == "mixer" for name, part in parts.items() if ".mixer." in name)
    assert {part for name, part in parts.items() if "mixer_norm" in name} <= {"norm"}
