"""Hints, attention transfer and relations against their formulas, and what the taps record."""

import math
from typing import cast

import pytest
import torch
from torch import nn

from fairway.core.errors import ConfigError
from fairway.core.seed import generator
from fairway.loss.distill.features import Config, Features, attention, hint, relation
from fairway.loss.taps import Taps
from laws.teaching import gradients, lesson, made, text


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "features"), dtype=torch.float64)


def test_a_hint_is_half_the_mean_square() -> None:
    assert float(hint(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[0.0, 1.0]]]))) == pytest.approx(0.5 * (1 + 4) / 2)


def test_attention_transfer_is_the_distance_of_normalised_maps_not_its_square() -> None:
    student = torch.tensor([[[3.0, 0.0], [0.0, -4.0]]])
    teacher = torch.tensor([[[1.0], [0.0]]])
    one = attention(student, teacher, 1.0, 2.0)
    assert float(one) == pytest.approx(2.0 / 4 * math.dist((0.6, 0.8), (1.0, 0.0)))
    two = attention(student, teacher, 2.0, 2.0)
    length = math.hypot(9, 16)
    assert float(two) == pytest.approx(2.0 / 4 * math.dist((9 / length, 16 / length), (1.0, 0.0)))
    assert float(attention(student, 5 * student, 2.0, 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_relations_are_the_mean_kl_of_what_each_token_sees_behind_it() -> None:
    student, teacher = features(2, 4, 6), features(2, 4, 8, seed=1)
    total = 0.0
    for row in range(2):
        for head in range(2):
            s = student[row, :, 3 * head : 3 * head + 3]
            t = teacher[row, :, 4 * head : 4 * head + 4]
            for time in range(4):
                p = (t[: time + 1] @ t[time] / 2).softmax(0)
                q = (s[: time + 1] @ s[time] / math.sqrt(3)).softmax(0)
                total += float((p * (p / q).log()).sum())
    assert float(relation(student, teacher, 2)) == pytest.approx(total / 16, abs=1e-12)


def test_relations_have_finite_gradients_and_refuse_heads_that_do_not_divide() -> None:
    student = features(1, 5, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(relation(student, features(1, 5, 4, seed=1), 2), student)
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any())
    with pytest.raises(ConfigError, match="do not divide"):
        relation(student, student, 4)


def test_taps_record_the_output_of_the_layers_asked_for() -> None:
    model = made(1, "depth=4")
    tokens = text(3)
    taps = Taps(model, (0.25, 0.5, 1.0))
    output = model(tokens)
    first, second, last = (found[0] for found in taps.take())
    assert torch.allclose(model.norm(last), output.hidden_BTD)
    seen: list[torch.Tensor] = []
    blocks = cast(nn.ModuleList, model.depth.blocks)
    handles = [block.register_forward_hook(lambda *call: seen.append(call[2][0])) for block in blocks]
    model(tokens)
    assert torch.equal(first, seen[0])
    assert torch.equal(second, seen[1])
    for handle in handles:
        handle.remove()
    taps.take()
    taps.remove()
    model(tokens)
    with pytest.raises(KeyError):
        taps.take()


@pytest.mark.parametrize("of", ["hint", "attention", "relation"])
def test_the_student_and_its_regressors_are_pulled_towards_the_teacher(of: str) -> None:
    student, teacher = made(1, "depth=2"), made(2, "depth=4", "width=16").requires_grad_(False)
    config = Config.read({"of": of, "heads": 2})
    technique = config.build(student, teacher)
    assert isinstance(technique, Features)
    if technique.learned is not None:
        technique.learned.double()
    loss = technique.loss(lesson(student, teacher, text(3)))
    assert loss is not None
    assert any(gradient.any() for gradient in gradients(loss, student))
    assert (technique.learned is not None) == (of == "hint")
    assert technique.next_token_weight(0.1) == 0.5


def test_two_stages_learn_features_first_and_text_afterwards() -> None:
    student, teacher = made(1), made(2)
    technique = Config.read({"of": "attention", "alone": 0.4}).build(student, teacher)
    assert [technique.next_token_weight(progress) for progress in (0.0, 0.39, 0.4, 1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert technique.loss(lesson(student, teacher, text(3))) is None


def test_relations_of_a_mixer_without_queries_are_refused_with_what_would_work() -> None:
    with pytest.raises(ConfigError, match=r"distill\.loss\.of=hint"):
        Config.read({"of": "relation"}).build(made(1, "mixer=mamba"), made(2))
