"""Hard concrete gates against random draws, and a run whose gates learn which heads to close."""

import pytest
import torch
from torch import Tensor

from compress.examples import model, part, text
from compress.training import BATCH, OUTPUT, loop
from fairway.compress import head_gates as gates
from fairway.compress.prune import heads
from fairway.model.parts import Role, parameter_roles


def uniform(count: int) -> Tensor:
    """Evenly spread over (0, 1), so that means are integrals."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("log_alpha", [-3.0, 0.0, 2.0])
def test_the_penalty_is_the_chance_of_a_gate_that_is_not_zero(log_alpha: float) -> None:
    at = torch.tensor(log_alpha, dtype=torch.float64)
    drawn = gates.sampled(at, uniform(200_000))
    assert float((drawn > 0).double().mean()) == pytest.approx(float(gates.open_chance(at)), abs=1e-4)
    assert abs(float(drawn.mean()) - float(gates.open_chance(at))) > 0.01, "the mean gate is another number"
    assert float((drawn == 1).double().mean()) > 0.001
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_gates_and_penalty_have_the_slopes_of_differences() -> None:
    at = torch.tensor([-1.0, 0.3, 1.5], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([0.4, 0.6, 0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: gates.sampled(a, u), (at,))
    assert torch.autograd.gradcheck(gates.open_chance, (at,))


def test_gates_in_use_are_exactly_closed_or_open_at_the_ends() -> None:
    assert gates.settled(torch.tensor([-6.0, 0.0, 6.0])).tolist() == [0.0, 0.5, 1.0]


def test_the_heads_that_do_harm_close() -> None:
    """The weights stay as they are, and the loss is the distance to the model without two of its eight heads."""
    subject, target = loop(80), model()
    harmful = {"depth.blocks.0.mixer": 2, "depth.blocks.1.mixer": 0}
    for name, head in harmful.items():
        for each in (subject.model, target):
            part(each, name).output.weight.data.mul_(5)
        part(target, name).output.weight.data.unflatten(1, (4, -1))[:, head] = 0
    wanted_BTD = target.train()(text()[0]).hidden_BTD.detach()
    subject.model.requires_grad_(False).train()
    hook = heads.Gates(heads.Config(gates="hard_concrete", sparsity=0.25, penalty=1e-4, rate=0.2, end=0.9), seed=1)
    hook.start(subject)
    while not hook.masks:
        distance = (subject.model(text()[0]).hidden_BTD - wanted_BTD).square().mean()
        (distance + hook.loss(subject, BATCH, OUTPUT)["gates"]).backward()
        hook.gradients(subject)
        hook.stepped(subject)
        subject.step += 1
    for name, head in harmful.items():
        open_H = hook.masks[f"{name}.output.weight"].any(dim=0).view(4, -1).any(dim=1)
        assert (~open_H).nonzero().flatten().tolist() == [head]
        assert gates.settled(hook.log_alpha[name].detach())[head] == 0


def test_what_gates_closed_stays_closed_in_training_and_goes_in_compression() -> None:
    subject = loop(20)
    config = heads.Config(gates="hard_concrete", sparsity=0.25, end=0.5)
    hook = heads.Gates(config, seed=1)
    subject.run([hook], 10)
    assert not hook.masks
    subject.run([hook], 10)
    named = dict(subject.model.named_parameters())
    assert len(hook.masks) == 8
    assert not any(named[name].detach()[mask == 0].any() for name, mask in hook.masks.items())
    hook.finish(subject)
    before = subject.model.eval()(text()[0]).hidden_BTD.detach()
    pruned = config.build().prune(subject.model, [])
    assert torch.equal(pruned.model(text()[0]).hidden_BTD, before)
    for name, kept in pruned.kept.items():
        assert torch.equal(kept, hook.masks[name] > 0)


def test_a_run_resumes_its_gates() -> None:
    config = heads.Config(gates="hard_concrete", end=0.9)
    straight, broken = loop(20), loop(20)
    one, first, second = (heads.Gates(config, seed=3) for _ in range(3))
    straight.run([one], 12)
    broken.run([first], 7)
    first.finish(broken)
    second.load_state(first.state())
    broken.run([second], 5)
    for name, value in one.log_alpha.items():
        assert torch.equal(value, second.log_alpha[name])
        assert not torch.equal(value.detach(), torch.full_like(value, 2.0))


def test_gates_are_no_parameters_of_the_model() -> None:
    subject = loop(5)
    before = set(parameter_roles(subject.model))
    subject.run([heads.Gates(heads.Config(gates="hard_concrete"), seed=0)], 2)
    assert set(parameter_roles(subject.model)) == before
    assert Role.MATRIX in parameter_roles(model()).values()
