"""The factors of the curvature against what the loss really does."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.examples import model, text
from fairway.compress.felt import felt_statistics
from fairway.compress.fit import compress_model
from fairway.compress.plan import CompressConfig
from fairway.compress.sensitivity import shifts
from fairway.core.errors import ConfigError
from fairway.model.lm import LanguageModel


def logs(subject: LanguageModel, calibration: list[Tensor]) -> Tensor:
    with torch.no_grad():
        logits = [subject.logits(subject(tokens_BT).hidden_BTD).flatten(0, 1) for tokens_BT in calibration]
        return torch.cat(logits).log_softmax(-1)


def divergence(subject: LanguageModel, name: str, change: Tensor, calibration: list[Tensor]) -> float:
    """Mean over tokens of the Kullback-Leibler divergence that a change of one weight brings about."""
    moved = copy.deepcopy(subject)
    dict(moved.named_parameters())[name].data += change
    before, after = logs(subject, calibration), logs(moved, calibration)
    return float((before.exp() * (before - after)).sum(-1).mean())


def costs(subject: LanguageModel, calibration: list[Tensor]) -> dict[str, float]:
    """For every weight that is felt, what small random changes cost, over what the factors say."""
    found: dict[str, float] = {}
    for name, seen in felt_statistics(subject, calibration).items():
        weight = dict(subject.named_parameters())[name]
        size = 0.02 * float(weight.square().mean().sqrt())
        changes = [size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)) for i in range(6)]
        assert seen.felt_R is not None
        moments_CC = seen.gram_CC / seen.tokens
        expected = sum(0.5 * float(seen.felt_R @ ((c.double() @ moments_CC) * c.double()).sum(1)) for c in changes)
        if expected:
            found[name] = sum(divergence(subject, name, c, calibration) for c in changes) / expected
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_changes_cost_what_the_factors_say_where_tokens_are_independent(tied: bool) -> None:
    """In texts of one token attention mixes nothing, and no score is felt."""
    found = costs(model(head={"tied": tied}).requires_grad_(False), list(torch.arange(288)[:, None].fmod(50).split(96)))
    assert len(found) == (9 if tied else 10)
    assert not [name for name in found if ".query." in name or ".key." in name]
    assert all(0.75 < ratio < 1.25 for ratio in found.values()), found


@pytest.mark.parametrize("tied", [True, False])
def test_attention_alone_makes_changes_cost_other_than_the_factors_say(tied: bool) -> None:
    """It averages values, whose tokens then act together; maps that no attention lies behind are felt as before."""
    found = costs(model(head={"tied": tied}).requires_grad_(False), text())
    for name, ratio in found.items():
        low, high = (0.5, 3.0) if "blocks.0." in name or ".value." in name else (0.75, 1.25)
        assert low < ratio < high, (name, ratio)
    assert found["depth.blocks.1.mixer.value.weight"] > 1.5


def test_tied_tables_heads_and_all_reached_maps_are_felt() -> None:
    tied, own = model(), model(head={"tied": False})
    assert "embedding.weight" in felt_statistics(tied, text())
    found = felt_statistics(own, text())
    assert {"embedding.weight", "head.own.weight", "depth.blocks.0.ffn.output.weight"} <= set(found)


def test_feeling_leaves_model_and_gradients_alone() -> None:
    subject = model().requires_grad_(False)
    before = {name: p.clone() for name, p in subject.named_parameters()}
    felt_statistics(subject, text())
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in subject.named_parameters())
    assert not any(p.requires_grad for p in subject.parameters())


def test_steps_by_the_factors_sum_to_nothing_and_favour_what_is_felt() -> None:
    subject = model().requires_grad_(False)
    found = felt_statistics(subject, text())
    moved = shifts(subject, text(), "kronecker", {}, found)
    sizes = {name: p.numel() for name, p in subject.named_parameters() if name in moved}
    assert sum(moved[name] * sizes[name] for name in moved) == pytest.approx(0.0, abs=1e-6 * sum(sizes.values()))
    name = "depth.blocks.0.ffn.output.weight"
    felt_R = found[name].felt_R
    assert felt_R is not None
    louder = {**found, name: replace(found[name], felt_R=4 * felt_R)}
    again = shifts(subject, text(), "kronecker", {}, louder)
    assert again[name] - moved[name] == pytest.approx(-1.0 + sizes[name] / sum(sizes.values()), abs=1e-6)


def test_without_text_nothing_is_felt(tmp_path: Path) -> None:
    config = CompressConfig.read({"quantize": "trellis"})
    with pytest.raises(ConfigError, match="calibration text"):
        compress_model(model(), "byte", b"", config, 10**6, tmp_path / "model.fwy", {}, [])
