"""Techniques that learn from drawn texts, against exact sums over every text of three tokens out of three."""

from itertools import product

import pytest
import torch
from torch import Tensor

from fairway.core.errors import ConfigError
from fairway.loss.distill.minillm import Config as MiniLLMConfig
from fairway.loss.distill.minillm import MiniLLM
from fairway.loss.distill.on_policy import Config as OnPolicyConfig
from fairway.loss.distill.on_policy import OnPolicy
from fairway.loss.distill.sequence import Config as SequenceConfig
from fairway.loss.distill.sequence import SequenceLevel
from fairway.loss.sampling import Drawn
from fairway.model.lm import LanguageModel
from laws.teaching import close, gradients, lesson, made, text

TEXTS = torch.tensor(list(product(range(3), repeat=3)))
TOKENS = torch.cat((torch.zeros(27, 1, dtype=torch.int64), TEXTS), 1)
BASE = {"prompt": 1, "tokens": 3, "alpha": 1.0}


def log_probabilities(model: LanguageModel, tokens: Tensor = TOKENS) -> Tensor:
    """Of each token of each text behind the prompt, (27, 3)."""
    log_p = model.logits(model(tokens[:, :-1]).hidden_BTD).log_softmax(-1)
    return log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1)


def every(law: Tensor) -> Drawn:
    """All texts, as if drawn under some law (27, 3)."""
    return Drawn(TOKENS, law.detach(), torch.ones(27, 3, dtype=torch.bool))


@pytest.fixture(name="pair")
def _pair() -> tuple[LanguageModel, LanguageModel]:
    return made(1), made(2)


def sequence_kl(student: LanguageModel, teacher: LanguageModel) -> Tensor:
    """KL(student || teacher) over whole texts, exactly."""
    log_q, log_p = log_probabilities(student).sum(1), log_probabilities(teacher).sum(1).detach()
    return (log_q.exp() * (log_q - log_p)).sum()


@pytest.mark.parametrize(("share", "importance"), [(0.0, "step"), (0.0, "whole"), (0.3, "whole")])
def test_the_policy_gradient_is_that_of_the_kl_over_all_texts(pair, share: float, importance: str) -> None:
    student, teacher = pair
    technique = MiniLLM(MiniLLMConfig.read({**BASE, "length_normalised": False, "importance": importance}))
    log_q, log_p = log_probabilities(student), log_probabilities(teacher)
    law = (share * log_p.exp() + (1 - share) * log_q.exp()).log().detach()
    terms = technique.on(lesson(student, teacher, text(3)), every(law)) * 3
    mean = (law.sum(1).exp() * terms).sum()
    assert close(gradients(mean, student), gradients(sequence_kl(student, teacher), student))


def test_on_its_own_texts_the_value_is_the_kl_over_all_texts(pair) -> None:
    student, teacher = pair
    technique = MiniLLM(MiniLLMConfig.read(BASE))
    law = log_probabilities(student).detach()
    mean = (law.sum(1).exp() * technique.on(lesson(student, teacher, text(3)), every(law)) * 3).sum()
    assert float(mean.detach()) == pytest.approx(float(sequence_kl(student, teacher).detach()), abs=1e-12)


def test_teacher_mixing_without_its_weight_would_be_biased(pair) -> None:
    student, teacher = pair
    technique = MiniLLM(MiniLLMConfig.read({**BASE, "length_normalised": False}))
    law = log_probabilities(teacher).detach()
    unweighted = Drawn(TOKENS, log_probabilities(student).detach(), torch.ones(27, 3, dtype=torch.bool))
    terms = technique.on(lesson(student, teacher, text(3)), unweighted) * 3
    wanted = gradients(sequence_kl(student, teacher), student)
    assert not close(gradients((law.sum(1).exp() * terms).sum(), student), wanted, tolerance=1e-3)


def test_single_step_weights_are_those_of_the_source_and_length_divides_later_rewards(pair) -> None:
    student, teacher = pair
    law = torch.full((27, 3), 1 / 3, dtype=torch.float64).log()
    technique = MiniLLM(MiniLLMConfig.read(BASE))
    log_q = log_probabilities(student)
    log_p = log_probabilities(teacher).detach()
    whole_q = student.logits(student(TOKENS[:, :-1]).hidden_BTD).log_softmax(-1)
    whole_p = teacher.logits(teacher(TOKENS[:, :-1]).hidden_BTD).log_softmax(-1).detach()
    reward, weight = (log_p - log_q).detach(), (log_q.detach() - law).exp()
    single = (whole_q.exp() * (whole_p - whole_q)).sum(-1)
    later = torch.stack(((reward[:, 1] + reward[:, 2]) / 2, reward[:, 2], torch.zeros(27).double()), 1)
    wanted = -(weight * (single + later * log_q)).sum()
    seen = technique.on(lesson(student, teacher, text(3)), every(law)).sum() * 3
    assert close(gradients(seen, student), gradients(wanted, student))


def test_what_stands_behind_the_boundary_changes_no_gradient(pair) -> None:
    student, teacher = pair
    kept = torch.tensor([[True, True, False]])
    for technique in (MiniLLM(MiniLLMConfig.read(BASE)), OnPolicy(OnPolicyConfig.read(BASE))):
        found = []
        for last in (0, 2):
            tokens = torch.tensor([[0, 1, 2, last]])
            drawn = Drawn(tokens, torch.full((1, 3), -1.0).double(), kept)
            found.append(gradients(technique.on(lesson(student, teacher, text(3)), drawn).sum(), student))
        assert close(found[0], found[1])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_on_policy_is_the_mean_divergence_over_all_texts_of_the_student(pair, beta: float) -> None:
    student, teacher = pair
    technique = OnPolicy(OnPolicyConfig.read({**BASE, "beta": beta}))
    law = log_probabilities(student).detach()
    chance = law.sum(1).exp()
    seen = torch.zeros(())
    for place in range(27):
        drawn = Drawn(TOKENS[place : place + 1], law[place : place + 1], torch.ones(1, 3, dtype=torch.bool))
        seen = seen + chance[place] * technique.on(lesson(student, teacher, text(3)), drawn)
    s = student.logits(student(TOKENS[:, :-1]).hidden_BTD).softmax(-1)
    t = teacher.logits(teacher(TOKENS[:, :-1]).hidden_BTD).softmax(-1).detach()
    m = beta * t + (1 - beta) * s
    ends = {0.0: (t * (t / s).log()).sum(-1), 1.0: (s * (s / t).log()).sum(-1)}
    mixed = (beta * t * (t / m).log() + (1 - beta) * s * (s / m).log()).sum(-1)
    wanted = (chance[:, None] * ends.get(beta, mixed)).sum() / 3
    assert float(seen.detach()) == pytest.approx(float(wanted.detach()), abs=1e-12)
    assert close(gradients(seen, student), gradients(wanted, student))


def test_the_share_decides_between_the_students_text_and_the_training_text(pair) -> None:
    student, teacher = pair
    tokens = text(3, rows=4)
    always = OnPolicy(OnPolicyConfig.read({**BASE, "share": 0.0})).loss(lesson(student, teacher, tokens))
    s = student.logits(student(tokens[:, :-1]).hidden_BTD).softmax(-1)
    t = teacher.logits(teacher(tokens[:, :-1]).hidden_BTD).softmax(-1)
    m = (s + t) / 2
    wanted = 0.5 * (t * (t / m).log() + s * (s / m).log()).sum(-1).mean()
    assert float(always.detach()) == pytest.approx(float(wanted.detach()), abs=1e-12)
    never = OnPolicy(OnPolicyConfig.read({**BASE, "share": 1.0})).loss(lesson(student, teacher, tokens))
    assert float(never.detach()) != pytest.approx(float(wanted.detach()), abs=1e-6)


def test_sequence_level_is_the_cross_entropy_of_the_teachers_law(pair) -> None:
    student, teacher = pair
    technique = SequenceLevel(SequenceConfig.read(BASE))
    log_p = log_probabilities(teacher).detach()
    seen = torch.zeros(())
    for place in range(27):
        drawn = Drawn(TOKENS[place : place + 1], log_p[place : place + 1], torch.ones(1, 3, dtype=torch.bool))
        seen = seen + log_p[place].sum().exp() * technique.on(lesson(student, teacher, text(3)), drawn)
    log_q = log_probabilities(student).sum(1)
    wanted = -(log_p.sum(1).exp() * log_q).sum() / 3
    assert float(seen.detach()) == pytest.approx(float(wanted.detach()), abs=1e-12)
    assert close(gradients(seen, student), gradients(wanted, student))


def test_texts_longer_than_the_context_are_refused(pair) -> None:
    student, teacher = pair
    for config in (MiniLLMConfig, OnPolicyConfig, SequenceConfig):
        with pytest.raises(ConfigError, match="need a context of 11"):
            config.read({"prompt": 4, "tokens": 8}).build(student, teacher)
