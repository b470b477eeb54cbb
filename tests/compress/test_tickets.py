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


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("control", ["ticket", "reinitialised", "random"])
def test_between_trainings_the_least_of_what_was_trained_goes_and_only_the_last_is_controlled(
    control: str, scope: str
) -> None:
    subject = loop(9)
    hook = Config.model_validate({"sparsity": 0.75, "rounds": 2, "control": control, "scope": scope}).hooks(seed=3)[0]
    assert isinstance(hook, Ticket)
    early = {name: value.detach().clone() for name, value in subject.model.named_parameters()}
    subject.run([hook], 3)
    assert not hook.masks
    for done in (1, 2):
        before = dict(hook.masks)
        trained = {name: value.detach().clone() for name, value in subject.model.named_parameters()}
        with torch.no_grad():
            for name, value in subject.model.named_parameters():
                value.copy_(early[name])
        hook.again(subject, trained)
        total, kept = (sum(f(mask) for mask in hook.masks.values()) for f in (Tensor.numel, Tensor.count_nonzero))
        assert int(kept) == pytest.approx(total * 0.5**done, abs=len(hook.masks))
        fresh = done == 2 and control != "ticket"
        for name, value in subject.model.named_parameters():
            mask = hook.masks.get(name, torch.ones_like(value))
            assert not value.detach()[mask == 0].any()
            moved = done == 2 and control == "reinitialised" and value.ndim > 1
            assert torch.equal(value.detach(), early[name] * mask) != moved
            if name in hook.masks and scope == "layer" and not (fresh and control == "random"):
                assert trained[name][(mask == 0) & (before.get(name, mask + 1) > 0)].abs().max() <= (
                    trained[name][mask > 0].abs().min()
                )
        subject.run([hook], 2)


def test_interpolation_ends_at_both_networks_and_the_barrier_is_measured_above_their_mean() -> None:
    first, second = network(), {name: value + 1 for name, value in network().items()}
    assert all(torch.equal(value, first[name]) for name, value in interpolated(first, second, 0.0).items())
    assert all(torch.allclose(value, second[name]) for name, value in interpolated(first, second, 1.0).items())
    assert error_barrier([0.10, 0.14, 0.12]) == pytest.approx(0.03)
