"""Lottery tickets: cumulative masks, survivors bit for bit at their early weights, everything else started
anew.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress.training import loop
from fairway.compress.prune.lottery import Config, Ticket, error_barrier, find_tickets, interpolated

Weights = dict[str, Tensor]


def network() -> Weights:
    random = torch.Generator().manual_seed(0)
    return {"w": torch.randn(12, 10, generator=random), "b": torch.zeros(12)}


def trainer(calls: list[tuple[Weights, Weights]]) -> Callable[[Weights, Weights], tuple[Weights, Weights]]:
    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(1))
    y = x @ torch.randn(10, 12, generator=torch.Generator().manual_seed(2))

    def train(weights: Weights, masks: Weights) -> tuple[Weights, Weights]:
        calls.append(({n: v.clone() for n, v in weights.items()}, dict(masks)))
        values = {n: v.clone().requires_grad_() for n, v in weights.items()}
        optimizer = torch.optim.SGD(values.values(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            (x @ (values["w"] * masks["w"]).T + values["b"] - y).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                values["w"].mul_(masks["w"])
        return {n: v.detach() for n, v in values.items()}, weights

    return train


def test_tickets_are_survivors_at_their_first_weights_with_masks_that_only_shrink() -> None:
    calls: list[tuple[Weights, Weights]] = []
    initial = network()
    rounds = find_tickets(trainer(calls), initial, ["w"], 0.488, 3)
    assert len(rounds) == len(calls) == 4
    for earlier, later in itertools.pairwise(rounds):
        assert not ((later.masks["w"] > 0) & (earlier.masks["w"] == 0)).any()
        assert torch.equal(later.start["w"], initial["w"] * later.masks["w"])
        assert torch.equal(later.start["b"], initial["b"])
        assert not later.end["w"][later.masks["w"] == 0].any()
    assert [int(r.masks["w"].sum()) for r in rounds] == [120, 96, 77, 62]


def test_each_round_removes_the_smallest_of_the_trained_survivors() -> None:
    rounds = find_tickets(trainer([]), network(), ["w"], 0.5, 2)
    for earlier, later in itertools.pairwise(rounds):
        alive = earlier.masks["w"] > 0
        gone = alive & (later.masks["w"] == 0)
        assert earlier.end["w"][gone].abs().max() <= earlier.end["w"][later.masks["w"] > 0].abs().min()


@pytest.mark.parametrize("control", ["ticket", "reinitialised", "random"])
def test_inside_one_run_survivors_go_back_and_the_optimizer_starts_afresh(control: str) -> None:
    subject = loop(9)
    hook = Config.model_validate({"sparsity": 0.5, "rounds": 1, "rewind": 0.0, "control": control}).hooks(seed=3)[0]
    assert isinstance(hook, Ticket)
    initial = {name: value.detach().clone() for name, value in subject.model.named_parameters()}
    subject.run([hook], 5)
    assert not hook.masks
    subject.run([hook], 1)
    assert hook.masks
    named = dict(subject.model.named_parameters())
    for name, mask in hook.masks.items():
        assert int(mask.sum()) == mask.numel() - int(0.5 * mask.numel())
        assert not named[name].detach()[mask == 0].any()
        same = torch.equal(named[name].detach(), initial[name] * mask)
        assert same == (control != "reinitialised")
    assert not any(value.any() for value in subject.optimizer.state().values())


def test_rewinding_goes_to_the_weights_of_step_k_not_of_the_last_round() -> None:
    subject = loop(30)
    hook = Config.model_validate({"sparsity": 0.75, "rounds": 2, "rewind": 0.3}).hooks(seed=3)[0]
    assert isinstance(hook, Ticket)
    subject.run([hook], 4)
    early = {name: value.detach().clone() for name, value in subject.model.named_parameters()}
    assert torch.equal(hook.early["embedding.weight"], early["embedding.weight"])
    subject.run([hook], 17)
    named = dict(subject.model.named_parameters())
    assert hook.rounds_done == 2
    for name, value in named.items():
        expected = early[name] * hook.masks[name] if name in hook.masks else early[name]
        assert torch.equal(value.detach(), expected)


def test_interpolation_ends_at_both_networks_and_the_barrier_is_measured_above_their_mean() -> None:
    first, second = network(), {name: value + 1 for name, value in network().items()}
    assert all(torch.equal(value, first[name]) for name, value in interpolated(first, second, 0.0).items())
    assert all(torch.allclose(value, second[name]) for name, value in interpolated(first, second, 1.0).items())
    assert error_barrier([0.10, 0.14, 0.12]) == pytest.approx(0.03)
