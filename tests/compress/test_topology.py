"""Densities, masks and changes of topology against brute force over sets."""

import math

import pytest
import torch

from compress.training import OPTIMIZERS, loop
from fairway.compress.parts import PrunerConfig
from fairway.compress.plan import PRUNERS
from fairway.compress.prune.dynamic import Dynamic
from fairway.compress.prune.imp import Config as ImpConfig
from fairway.compress.topology import Density, Masked, densities, moved, random_mask, share_at

SHAPES = {"a": (32, 8), "b": (64, 64), "c": (10, 64), "d": (16, 8, 3, 3)}


def config(kind: str, **settings: object) -> PrunerConfig:
    found = PRUNERS.config(kind).model_validate({"kind": kind, **settings})
    assert isinstance(found, PrunerConfig)
    return found


@pytest.mark.parametrize("rule", ["uniform", "er", "erk"])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.98])
def test_densities_sum_to_the_target_and_never_exceed_one(rule: Density, sparsity: float) -> None:
    found = densities(SHAPES, sparsity, rule)
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    assert sum(found[name] * sizes[name] for name in SHAPES) == pytest.approx((1 - sparsity) * sum(sizes.values()))
    assert all(0 < density <= 1 for density in found.values())


def test_erk_is_proportional_to_the_sum_of_dimensions_over_their_product() -> None:
    found = densities(SHAPES, 0.98, "erk")
    raw = {name: sum(shape) / math.prod(shape) for name, shape in SHAPES.items()}
    free = [name for name in SHAPES if found[name] < 1]
    assert len(free) >= 2
    assert max(found[n] / raw[n] for n in free) == pytest.approx(min(found[n] / raw[n] for n in free))


def test_uniform_density_leaves_the_first_layer_dense() -> None:
    found = densities(SHAPES, 0.5, "uniform")
    assert found["a"] == 1.0
    assert found["b"] == found["c"] == found["d"] < 0.5


def test_random_masks_have_the_exact_count() -> None:
    mask = random_mask((37, 11), 0.3, torch.Generator().manual_seed(0))
    assert int(mask.sum()) == round(0.3 * 37 * 11)


@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_a_change_of_topology_is_the_one_that_sets_define(regrow: bool, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 7, generator=random)
    mask = random_mask((6, 7), 0.4, random)
    weight = weight * mask
    growth = torch.rand(6, 7, generator=random)
    count = 5
    active = {i for i, m in enumerate(mask.flatten().tolist()) if m}
    dropped = set(sorted(active, key=lambda i: abs(weight.flatten()[i].item()))[:count])
    kept = active - dropped
    candidates = set(range(42)) - kept - (set() if regrow else dropped)
    grown = set(sorted(candidates, key=lambda i: -growth.flatten()[i].item())[:count])
    found = moved(weight, mask, growth, count, regrow=regrow)
    assert {i for i, m in enumerate(found.flatten().tolist()) if m} == kept | grown
    assert int(found.sum()) == int(mask.sum())


def test_nothing_moves_when_nothing_is_asked_for() -> None:
    mask = random_mask((4, 4), 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(moved(torch.ones(4, 4), mask, torch.ones(4, 4), 0), mask)


def test_the_share_falls_as_a_cosine_to_nothing() -> None:
    assert share_at(0.0, 0.3, 0.75) == pytest.approx(0.3)
    assert share_at(0.375, 0.3, 0.75) == pytest.approx(0.15)
    assert share_at(0.75, 0.3, 0.75) == share_at(0.9, 0.3, 0.75) == 0.0


@pytest.mark.parametrize("optimizer", OPTIMIZERS.kinds())
@pytest.mark.parametrize("kind", ["rigl", "set", "static"])
def test_removed_weights_stay_zero_and_the_count_stays_with_every_optimizer(kind: str, optimizer: str) -> None:
    subject = loop(12, optimizer)
    hook = config(kind, sparsity=0.7, every=3).hooks(seed=1)[0]
    assert isinstance(hook, Masked)
    subject.run([hook])
    named = dict(subject.model.named_parameters())
    counts = {name: int(mask.sum()) for name, mask in hook.masks.items()}
    first = loop(12, optimizer)
    fresh = config(kind, sparsity=0.7, every=3).hooks(seed=1)[0]
    assert isinstance(fresh, Masked)
    fresh.start(first)
    assert counts == {name: int(mask.sum()) for name, mask in fresh.masks.items()}
    changed = any(not torch.equal(mask, fresh.masks[name]) for name, mask in hook.masks.items())
    assert changed == (kind != "static")
    for name, mask in hook.masks.items():
        assert not named[name].detach()[mask == 0].any()


def test_rigl_grows_where_the_dense_gradient_is_largest_and_new_weights_start_at_zero() -> None:
    subject = loop(20)
    hook = config("rigl", sparsity=0.8, every=4, share=0.3).hooks(seed=1)[0]
    assert isinstance(hook, Dynamic)
    subject.run([hook], 4)
    before = {name: mask.clone() for name, mask in hook.masks.items()}
    weights = {name: value.detach().clone() for name, value in subject.model.named_parameters()}
    subject.optimizer.zero_grad()
    subject.loss().backward()
    gradients = {name: value.grad.clone() for name, value in subject.model.named_parameters() if value.grad is not None}
    assert hook.gradients(subject) is True
    named = dict(subject.model.named_parameters())
    for name, mask in hook.masks.items():
        count = int(share_at(subject.progress, 0.3, 0.75) * float(before[name].sum()))
        assert torch.equal(mask, moved(weights[name], before[name], gradients[name].abs(), count))
        new = (mask > 0) & (before[name] == 0)
        assert not named[name].detach()[new].any()
        stayed = (mask > 0) & (before[name] > 0)
        assert torch.equal(named[name].detach()[stayed], weights[name][stayed])
    state = subject.optimizer.state()
    for name, mask in hook.masks.items():
        for key, value in state.items():
            if key.startswith(f"{name}/") and value.shape == mask.shape:
                assert not value[before[name] == 0].any()


@pytest.mark.parametrize("kind", ["rigl", "set", "static", "imp"])
def test_masks_survive_a_checkpoint(kind: str) -> None:
    settings = {"sparsity": 0.6} | ({"every": 2} if kind in ("rigl", "set", "static") else {})
    whole, first = loop(12), loop(12)
    hook = config(kind, **settings).hooks(seed=1)[0]
    whole.run([hook])
    early = config(kind, **settings).hooks(seed=1)[0]
    first.run([early], 7)
    resumed = config(kind, **settings).hooks(seed=1)[0]
    resumed.load_state({name: value.clone() for name, value in early.state().items()})
    first.run([resumed], 5)
    assert isinstance(hook, Masked)
    assert isinstance(resumed, Masked)
    assert hook.masks
    assert all(torch.equal(mask, resumed.masks[name]) for name, mask in hook.masks.items())
    for (name, left), (_, right) in zip(whole.model.named_parameters(), first.model.named_parameters(), strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize("schedule", ["geometric", "cubic"])
def test_iterative_pruning_only_ever_removes_and_ends_at_its_target(schedule: str) -> None:
    subject = loop(20)
    hook = config("imp", sparsity=0.8, rounds=4, schedule=schedule).hooks(seed=0)[0]
    assert isinstance(hook, Masked)
    hook.start(subject)
    seen = []
    for _ in range(20):
        old = {name: mask.clone() for name, mask in hook.masks.items()}
        subject.run([hook], 1)
        assert all(not ((hook.masks[name] > 0) & (mask == 0)).any() for name, mask in old.items())
        seen.append(hook.density()["density"] if hook.masks else 1.0)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == pytest.approx(0.2, abs=0.01)
    assert len(set(seen)) == 5


def test_the_survivors_of_r_rounds_are_one_minus_p_to_the_r() -> None:
    found = ImpConfig.model_validate({"sparsity": 1 - 0.8**5, "rounds": 5, "start": 0.0, "end": 1.0})
    for done in range(1, 6):
        assert 1 - found.sparsity_at((done - 1) / 4) == pytest.approx(0.8**done)
    assert found.sparsity_at(-0.1) == 0.0


@pytest.mark.parametrize("kind", ["rigl", "imp"])
def test_settling_after_training_removes_the_traces_that_averaging_leaves(kind: str) -> None:
    subject = loop(12)
    made = config(kind, sparsity=0.6)
    hook = made.hooks(seed=0)[0]
    subject.run([hook])
    assert isinstance(hook, Masked)
    with torch.no_grad():
        for name, value in subject.model.named_parameters():
            if name in hook.masks:
                value.add_(1e-9 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    pruned = made.build().prune(subject.model, [])
    for name, mask in hook.masks.items():
        assert not dict(pruned.model.named_parameters())[name].detach()[mask == 0].any()
