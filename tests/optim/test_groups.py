"""Groups of a real model."""

import pytest

from fairway.model.lm import ModelConfig
from fairway.model.parts import Role, parameter_roles
from fairway.optim.groups import make_groups, members_of
from fairway.optim.optimizer.adamw import Config
from fairway.optim.parts import RateScale

SMALL = ModelConfig.read({"width": 32, "depth": 2, "context": 16, "mixer": {"kind": "attention", "heads": 2}})


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_of_a_language_model_is_in_one_group(tied: bool) -> None:
    config = ModelConfig.read(SMALL.plain() | {"head": {"tied": tied}})
    model = config.build(64, seed=0)
    groups = make_groups(model, Config())
    assert sorted(name for group in groups for name in group.parameters) == sorted(parameter_roles(model))
    assert {group.role for group in groups} >= {Role.EMBEDDING, Role.MATRIX, Role.VECTOR}
    assert (Role.HEAD in {group.role for group in groups}) is not tied
    assert len({group.name for group in groups}) == len(groups)


def test_rate_scales_split_a_role_into_groups_of_equal_rates() -> None:
    model = SMALL.build(64, seed=0)
    scaled = {name: RateScale(0.5, 2.0) for name, role in parameter_roles(model).items() if "ffn.output" in name}
    groups = [group for group in make_groups(model, Config(lr=0.01), scaled) if group.role is Role.MATRIX]
    assert [(group.lr, group.weight_decay) for group in groups] == [(0.01, 0.1), (0.005, 0.2)]
    assert set(groups[1].parameters) == set(scaled)
    assert set(members_of(model, groups[1])) == set(scaled)
