"""Every way to learn from a teacher: what it weighs, what it moves, and that it leaves the teacher alone."""

import pytest
import torch
from torch import Tensor

from fairway.loss.targets import Targets
from fairway.loss.transfer import Distiller, DistillLossConfig
from fairway.model.lm import LanguageModel
from fairway.train.teacher import DISTILL
from laws.teaching import gradients, lesson, made, text

SMALL = {"prompt": 2, "tokens": 4, "sequences": 2, "at": (1.0,)}


def config(kind: str, **changes: object) -> DistillLossConfig:
    technique = DISTILL.config(kind)
    fitting = {name: value for name, value in SMALL.items() if name in technique.model_fields}
    built = technique.read({"kind": kind, **fitting, **changes})
    assert isinstance(built, DistillLossConfig)
    return built


def loss_of(technique: Distiller, student: LanguageModel, teacher: LanguageModel, tokens: Tensor) -> Tensor:
    """The whole of what a technique adds, as a mean over tokens."""
    seen = lesson(student, teacher, tokens)
    total = torch.zeros((), dtype=torch.float64)
    if technique.token_term is not None:
        targets = Targets.of(seen.teacher_logits(tokens[:, :-1]).flatten(0, 1), technique.token_term.temperature)
        total = total + technique.token_term.loss(student.logits(seen.output.hidden_BTD).flatten(0, 1), targets)
    if technique.learned is not None:
        technique.learned.double()
    further = technique.loss(seen)
    return total if further is None else total + further


@pytest.mark.parametrize("kind", DISTILL.kinds())
def test_every_technique_pulls_the_student_and_not_the_teacher(kind: str) -> None:
    student, teacher = made(1), made(2).requires_grad_(False)
    technique = config(kind).build(student, teacher)
    loss = loss_of(technique, student, teacher, text(3))
    found = gradients(loss, student)
    assert all(bool(gradient.isfinite().all()) for gradient in found)
    assert any(gradient.any() for gradient in found)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", DISTILL.kinds())
def test_the_share_of_the_teacher_scales_its_term_and_leaves_the_rest_to_the_text(kind: str) -> None:
    student, teacher = made(1), made(2).requires_grad_(False)
    found = {}
    for alpha in (0.25, 0.75):
        technique = config(kind, alpha=alpha).build(student, teacher)
        assert technique.next_token_weight(0.5) == 1 - alpha
        found[alpha] = float(loss_of(technique, student, teacher, text(3)).detach())
    assert found[0.75] == pytest.approx(3 * found[0.25], rel=1e-9)


@pytest.mark.parametrize("kind", DISTILL.kinds())
def test_what_needs_no_more_than_predictions_says_so_truly(kind: str) -> None:
    chosen = config(kind)
    if not chosen.reads_predictions():
        return
    student = made(1)
    technique = chosen.build(student, None)
    assert technique.token_term is not None
    assert technique.learned is None


@pytest.mark.parametrize("kind", [kind for kind in DISTILL.kinds() if config(kind).reads_predictions()])
def test_a_student_that_agrees_with_its_teacher_is_not_pulled(kind: str) -> None:
    student = made(1)
    loss = loss_of(config(kind).build(student, student), student, student, text(3))
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients(loss, student))
