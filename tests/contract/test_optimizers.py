"""What every optimizer promises, for each technique found in the slot, and proof that each check can fail."""

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from fairway.core.config import Slot
from fairway.core.errors import CheckpointError
from fairway.model.parts import Part, Role, parameter_roles
from fairway.optim.optimizer.muon import Config as MuonConfig
from fairway.optim.parts import Group, Optimizer, OptimizerConfig

SLOT = Slot("fairway.optim.optimizer", "muon")
KINDS = SLOT.kinds()


class EveryRole(Part):
    """One parameter of each role, and a stack of matrices."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(3)
        shapes = {
            "embedding": (11, 6),
            "head": (11, 6),
            "square": (6, 6),
            "tall": (12, 6),
            "wide": (6, 12),
            "experts": (3, 4, 6),
            "gain": (6,),
            "factor": (),
            "router": (3, 6),
            "decay": (6,),
        }
        for name, shape in shapes.items():
            value = 0.1 * torch.randn(shape, generator=source, dtype=torch.float64) + 0.5
            self.register_parameter(name, nn.Parameter(value.to(dtype)))

    def roles(self) -> dict[str, Role]:
        matrices = dict.fromkeys(("square", "tall", "wide", "experts"), Role.MATRIX)
        return matrices | {
            "embedding": Role.EMBEDDING,
            "head": Role.HEAD,
            "gain": Role.VECTOR,
            "factor": Role.SCALAR,
            "router": Role.ROUTER,
            "decay": Role.DECAY,
        }


def give_gradients(model: nn.Module, seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    given = {}
    for name, parameter in model.named_parameters():
        parameter.grad = torch.randn(parameter.shape, generator=source).to(parameter.dtype)
        given[name] = parameter.grad.clone()
    return given


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def config_of(kind: str, **settings: object) -> OptimizerConfig:
    config = SLOT.config(kind).read({"kind": kind, **settings})
    assert isinstance(config, OptimizerConfig)
    return config


Build = Callable[[nn.Module], Optimizer]


def check_groups(build: Build) -> None:
    model = EveryRole()
    groups = build(model).groups()
    names = [name for group in groups for name in group.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    roles = parameter_roles(model)
    assert all(roles[name] is group.role for group in groups for name in group.parameters)


def check_gradients_survive(build: Build) -> None:
    model = EveryRole()
    optimizer = build(model)
    given = give_gradients(model, 1)
    objects = {name: parameter.grad for name, parameter in model.named_parameters()}
    optimizer.step(1.0, 0.5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad is objects[name]
        assert torch.equal(parameter.grad, given[name]), name


def check_missing_gradients(build: Build) -> None:
    model = EveryRole()
    optimizer = build(model)
    give_gradients(model, 1)
    optimizer.step(1.0, 0.5)
    missing = ("square", "experts", "gain", "embedding")
    give_gradients(model, 2)
    for name in missing:
        model.get_parameter(name).grad = None
    before, state = values(model), {key: tensor.clone() for key, tensor in optimizer.state().items()}
    optimizer.step(1.0, 0.5)
    for name, value in values(model).items():
        assert torch.equal(value, before[name]) == (name in missing), name
        assert name not in missing or model.get_parameter(name).grad is None
    for key, tensor in optimizer.state().items():
        assert key.split("/")[0] not in missing or torch.equal(tensor, state[key]), key


def check_zero_gradients(build: Build) -> None:
    model = EveryRole()
    optimizer = build(model)
    before = values(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0, 0.5)
    for name, value in values(model).items():
        assert torch.equal(value, before[name]), name


def check_masks(build: Build) -> None:
    model = EveryRole()
    optimizer = build(model)
    source = torch.Generator().manual_seed(5)
    masks = {
        name: (torch.rand(parameter.shape, generator=source) < 0.5).float()
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2
    }
    for name, mask in masks.items():
        model.get_parameter(name).data.mul_(mask)
    optimizer.masks = masks
    before = values(model)
    for seed in range(3):
        give_gradients(model, seed)
        optimizer.step(1.0, 0.5)
    for name, mask in masks.items():
        value = model.get_parameter(name).detach()
        assert not value[mask == 0].any(), f"{name}: a pruned weight revived"
        assert (value != before[name])[mask == 1].all(), f"{name}: a kept weight stood still"


def check_resume(build: Build) -> None:
    def run(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            give_gradients(model, step)
            optimizer.step(1.0 - step / 10, step / 6)

    straight = EveryRole()
    run(straight, build(straight), range(6))
    first = EveryRole()
    before = build(first)
    run(first, before, range(3))
    stored = save({key: tensor.contiguous() for key, tensor in before.state().items()})
    second = copy.deepcopy(first)
    after = build(second)
    after.load_state(load(stored))
    run(second, after, range(3, 6))
    for name, value in values(straight).items():
        assert torch.equal(value, second.get_parameter(name)), name


CHECKS = [
    check_groups,
    check_gradients_survive,
    check_missing_gradients,
    check_zero_gradients,
    check_masks,
    check_resume,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_optimizer_keeps_the_contract(kind: str, check: Callable[[Build], None]) -> None:
    check(config_of(kind, weight_decay=0.0).build)


class _SpoilsGradients(Optimizer):
    def step(self, scale: float, progress: float) -> None:
        super().step(scale, progress)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)


class _InventsGradients(Optimizer):
    def step(self, scale: float, progress: float) -> None:
        for parameter in self.parameters():
            if parameter.grad is None:
                parameter.grad = torch.ones_like(parameter)
        super().step(scale, progress)


class _DriftsOnZero(Optimizer):
    @torch.no_grad()
    def step(self, scale: float, progress: float) -> None:
        super().step(scale, progress)
        for parameter in self.parameters():
            parameter.mul_(1 - 1e-3)


class _Unmasked(Optimizer):
    def step(self, scale: float, progress: float) -> None:
        masks, self.masks = self.masks, {}
        super().step(scale, progress)
        self.masks = masks


class _ForgetsState(Optimizer):
    def state(self) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in super().state().items() if "momentum" not in key}


class _MislabelsGroups(Optimizer):
    def groups(self) -> list[Group]:
        return super().groups()[1:]


FAULTS = [
    (_MislabelsGroups, check_groups),
    (_SpoilsGradients, check_gradients_survive),
    (_InventsGradients, check_missing_gradients),
    (_DriftsOnZero, check_zero_gradients),
    (_Unmasked, check_masks),
    (_ForgetsState, check_resume),
]


@pytest.mark.parametrize(("faulty", "check"), FAULTS, ids=lambda item: item.__name__)
def test_each_check_catches_its_planted_fault(faulty: type[Optimizer], check: Callable[[Build], None]) -> None:
    def build(model: nn.Module) -> Optimizer:
        sound = MuonConfig.read({}).build(model)
        return faulty(model, sound._rules)

    with pytest.raises(AssertionError):
        check(build)


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_in_no_group_or_in_two_is_refused(kind: str) -> None:
    model = EveryRole()
    rules = config_of(kind).build(model)._rules
    with pytest.raises(AssertionError, match="in no group"):
        Optimizer(model, rules[1:])
    with pytest.raises(AssertionError, match="in two groups"):
        Optimizer(model, [*rules, rules[0]])


@pytest.mark.parametrize("kind", KINDS)
def test_only_matrices_heads_and_routers_decay(kind: str) -> None:
    model = EveryRole()
    optimizer = config_of(kind, weight_decay=0.1).build(model)
    decaying = {name for group in optimizer.groups() if group.weight_decay for name in group.parameters}
    assert decaying == {"square", "tall", "wide", "experts", "head", "router"}
    before = values(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0, 0.5)
    for group in optimizer.groups():
        for name in group.parameters:
            expected = before[name] * (1 - group.lr * group.weight_decay)
            torch.testing.assert_close(model.get_parameter(name).detach(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_decays_when_asked(kind: str) -> None:
    optimizer = config_of(kind, weight_decay=0.1, decay_embedding=True).build(EveryRole())
    assert next(group for group in optimizer.groups() if group.role is Role.EMBEDDING).weight_decay == 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_factor_of_zero_changes_nothing(kind: str) -> None:
    model = EveryRole()
    optimizer = config_of(kind, weight_decay=0.1).build(model)
    before = values(model)
    give_gradients(model, 1)
    optimizer.step(0.0, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())


@pytest.mark.parametrize("kind", KINDS)
def test_every_role_can_have_its_own_rate(kind: str) -> None:
    rates: Mapping[str, float] = {role.value: 0.001 * (1 + index) for index, role in enumerate(Role)}
    for group in config_of(kind, rates=dict(rates)).build(EveryRole()).groups():
        assert group.lr == rates[group.role.value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_follow_float32_ones(kind: str, dtype: torch.dtype) -> None:
    half, wide = EveryRole(dtype), EveryRole(dtype).float()
    configuration = config_of(kind, lr=0.05)
    first, second = configuration.build(half), configuration.build(wide)
    assert {tensor.dtype for tensor in first.state().values()} <= {torch.float32, torch.int64}
    give_gradients(half, 1)
    for name, parameter in wide.named_parameters():
        gradient = half.get_parameter(name).grad
        assert gradient is not None
        parameter.grad = gradient.float()
    first.step(1.0, 0.5)
    second.step(1.0, 0.5)
    for name, value in values(half).items():
        assert value.dtype == dtype
        assert torch.equal(value, wide.get_parameter(name).detach().to(dtype)), name


@pytest.mark.parametrize("kind", KINDS)
def test_expanded_and_transposed_gradients_count_like_plain_ones(kind: str) -> None:
    odd, plain = EveryRole(), EveryRole()
    first, second = config_of(kind).build(odd), config_of(kind).build(plain)
    give_gradients(odd, 1)
    odd.get_parameter("tall").grad = torch.ones(()).expand(12, 6)
    odd.get_parameter("square").grad = torch.arange(36.0).reshape(6, 6).T
    for name, parameter in plain.named_parameters():
        gradient = odd.get_parameter(name).grad
        assert gradient is not None
        parameter.grad = gradient.contiguous()
    first.step(1.0, 0.5)
    second.step(1.0, 0.5)
    assert all(torch.equal(value, values(plain)[name]) for name, value in values(odd).items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_optimizer_is_refused(kind: str) -> None:
    optimizer = config_of(kind).build(EveryRole())
    state = dict(optimizer.state())
    key = next(iter(state))
    with pytest.raises(CheckpointError, match="does not fit"):
        optimizer.load_state({name: tensor for name, tensor in state.items() if name != key})
    with pytest.raises(CheckpointError, match="shape"):
        optimizer.load_state(state | {key: torch.zeros(5, 7)})


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_brings_a_regression_down(kind: str) -> None:
    source = torch.Generator().manual_seed(1)
    x, target = torch.randn(64, 6, generator=source), torch.randn(6, 6, generator=source)
    model = EveryRole()
    optimizer, of = config_of(kind, lr=0.03).build(model), model.get_parameter

    def loss() -> Tensor:
        hidden = x @ of("tall").T @ of("wide").T + x @ of("square").T
        return (hidden + of("gain") - x @ target).square().mean()

    start = loss().item()
    for step in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step(1.0 - step / 200, step / 200)
    assert loss().item() < 0.2 * start
