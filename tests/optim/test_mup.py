"""The muP table against its closed form on a real model, and its effect on the size of updates."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from fairway.core.errors import ConfigError
from fairway.core.seed import generator
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.parts import MixerConfig, Role, parameter_roles
from fairway.optim.mup import _scored, parametrise, rule
from fairway.optim.optimizer.adamw import Config as AdamW
from fairway.optim.optimizer.lion import Config as Lion
from fairway.optim.optimizer.muon import Config as Muon
from fairway.optim.optimizer.sgd import Config as Sgd
from fairway.optim.parts import OptimizerConfig


class Config(MixerConfig):
    """A mixer with a factor on its scores."""

    heads: int = 2
    score_scale: float = 1.0


def model_of(width: int, **changes: Any) -> ModelConfig:
    mixer = {"kind": "attention", "heads": width // 8}
    return ModelConfig.read({"width": width, "depth": 2, "context": 16, "mixer": mixer} | changes)


@pytest.mark.parametrize(
    ("optimizer", "table", "hidden", "head", "router"),
    [
        (AdamW(), 1.0, 1 / 4, 1.0, 1 / 4),
        (Lion(), 1.0, 1 / 4, 1.0, 1 / 4),
        (Sgd(), 4.0, 1.0, 4.0, 1 / 4),
        (Muon(scale="spectral"), 1.0, 1.0, 1.0, 1 / 4),
        (Muon(scale="original"), 1.0, 1.0, 1.0, 1 / 4),
        (Muon(scale="match_rms_adamw"), 1.0, 1 / 2, 1.0, 1 / 4),
    ],
)
def test_the_table_at_fourfold_width(
    optimizer: OptimizerConfig, table: float, hidden: float, head: float, router: float
) -> None:
    def rates(role: Role, shape: tuple[int, ...], base: tuple[int, ...]) -> tuple[float, object]:
        found = rule(role, shape, base, optimizer)
        return found.deviation, pytest.approx(found.lr)

    assert rates(Role.EMBEDDING, (50, 64), (50, 16)) == (1.0, table)
    assert rates(Role.VECTOR, (64,), (16,)) == (1.0, table)
    assert rates(Role.VECTOR, (4,), (4,)) == (1.0, 1.0)
    assert rates(Role.MATRIX, (64, 64), (16, 16)) == (1.0, hidden)
    assert rates(Role.MATRIX, (256, 64), (64, 16)) == (1.0, hidden)
    assert rates(Role.MATRIX, (3, 64, 256), (3, 16, 64)) == (1.0, hidden)
    assert rates(Role.HEAD, (50, 64), (50, 16)) == (2.0, head)
    assert rates(Role.ROUTER, (8, 64), (8, 16)) == (0.5, router)


def test_muon_rates_repair_each_scale_rule_for_uneven_growth() -> None:
    """The spectral norm of a step must grow as sqrt(outputs / inputs), whatever the rule gives by itself."""
    for scale in ("original", "spectral", "match_rms_adamw"):
        optimizer = Muon.read({"scale": scale})
        for shape, base in (((64, 96), (16, 48)), ((96, 16), (24, 16)), ((8, 64), (8, 16))):
            own = {
                "original": lambda r, c: math.sqrt(max(1.0, r / c)),
                "spectral": lambda r, c: math.sqrt(r / c),
                "match_rms_adamw": lambda r, c: 0.2 * math.sqrt(max(r, c)),
            }[scale]
            step, base_step = own(*shape) * rule(Role.MATRIX, shape, base, optimizer).lr, own(*base)
            ideal = math.sqrt(shape[0] / shape[1]) / math.sqrt(base[0] / base[1])
            assert step / base_step == pytest.approx(ideal)


@pytest.mark.parametrize("tied", [True, False])
def test_the_base_itself_is_left_as_it_is(tied: bool) -> None:
    config = model_of(32, head={"tied": tied})
    grown = parametrise(config, config, 50, AdamW())
    assert grown.config == config
    assert set(grown.deviations.values()) == {1.0}
    assert all(scale.lr == scale.weight_decay == 1.0 for scale in grown.scales.values())


def test_decay_keeps_its_pace_and_the_head_is_divided_by_the_growth() -> None:
    grown = parametrise(model_of(64), model_of(16), 50, AdamW(lr=0.01, weight_decay=0.1))
    assert grown.config.head.scale == pytest.approx(1 / 4)
    assert all(scale.lr * scale.weight_decay == pytest.approx(1.0) for scale in grown.scales.values())
    model = grown.build(50, seed=0)
    groups = AdamW(lr=0.01, weight_decay=0.1).build(model, grown.scales).groups()
    matrices = [group for group in groups if group.role is Role.MATRIX]
    assert {(group.lr, group.weight_decay) for group in matrices} == {(0.0025, 0.4)}
    assert {group.lr for group in groups if group.role is not Role.MATRIX} == {0.01}


def test_building_twice_gives_the_same_model() -> None:
    grown = parametrise(model_of(64, head={"tied": False}), model_of(16, head={"tied": False}), 50, AdamW())
    first, second = grown.build(50, seed=3), grown.build(50, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def change_of_logits(model: LanguageModel, optimizer_config: OptimizerConfig, scales: Any) -> float:
    """Root mean square change of the logits over four steps on one batch."""
    optimizer = optimizer_config.build(model, scales)
    tokens_BT = torch.randint(0, 50, (4, 17), generator=generator(1))

    def logits() -> torch.Tensor:
        return model.logits(model(tokens_BT[:, :-1]).hidden_BTD)

    before = logits().detach()
    for step in range(4):
        optimizer.zero_grad()
        functional.cross_entropy(logits().flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
        optimizer.step(1.0, step / 4)
    return (logits().detach() - before).square().mean().sqrt().item()


def slope(values: list[float], widths: list[int]) -> float:
    """Least-squares slope of log value against log width."""
    x = torch.tensor(widths, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def test_updates_grow_with_width_in_the_standard_parametrisation_and_hardly_under_mup() -> None:
    widths, optimizer = [32, 64, 128, 256], AdamW(lr=0.02, weight_decay=0.0)
    standard, grown = [], []
    for width in widths:
        config = model_of(width)
        standard.append(change_of_logits(config.build(50, 0), optimizer, None))
        one = parametrise(config, model_of(32), 50, optimizer)
        grown.append(change_of_logits(one.build(50, 0), optimizer, one.scales))
    assert slope(standard, widths) > 0.4
    assert abs(slope(grown, widths)) < 0.2


def test_scores_are_divided_by_the_head_width() -> None:
    wide = _scored(Config(heads=2, score_scale=3.0), 64, Config(heads=2), 16)
    assert wide.model_dump()["score_scale"] == pytest.approx(3.0 / 2.0)
    assert _scored(Config(heads=8), 64, Config(heads=2), 16).model_dump()["score_scale"] == 1.0


def test_models_that_differ_in_more_than_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than sizes"):
        parametrise(model_of(32), model_of(16, depth=3), 50, AdamW())
    scaled = {"embedding": {"kind": "token", "scale": "sqrt"}}
    with pytest.raises(ConfigError, match="none or learned"):
        parametrise(model_of(32, **scaled), model_of(16, **scaled), 50, AdamW())


def test_every_parameter_has_a_rule() -> None:
    grown = parametrise(model_of(64), model_of(16), 50, AdamW())
    assert set(grown.scales) == set(grown.deviations) == set(parameter_roles(model_of(64).skeleton(50)))
