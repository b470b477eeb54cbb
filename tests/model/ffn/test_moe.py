"""Mixtures of experts against the dense masked loop, closed figures of the losses, capacity, bias and upcycling."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.errors import ConfigError
from fairway.model import routing
from fairway.model.activation import ACTIVATIONS
from fairway.model.ffn.gated import Config as Gated
from fairway.model.ffn.moe import Config, upcycle
from fairway.model.ffn.ungated import Config as Ungated
from fairway.ops.experts.naive import expert, mix
from laws import building
from laws.mixers import sample

POINT = {"swiglu": "silu", "relu2": "relu2", "gelu": "gelu"}


def moe(width: int = 16, **settings: Any) -> Any:
    return building.opened(lambda: Config(kind="moe", **settings).build(width))


def gates_of(made: Any, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Dense gates by the definition, and scores."""
    config = made.config
    logits = x_ND @ made.router_ED.T
    scores = logits.softmax(-1) if config.scores == "softmax" else logits.sigmoid()
    ranked = scores if made.bias_E is None else scores + made.bias_E
    gates = torch.zeros_like(scores)
    for n in range(len(x_ND)):
        for e in ranked[n].argsort(descending=True)[: config.chosen].tolist():
            gates[n, e] = scores[n, e]
    if config.renormalise:
        gates = gates / gates.sum(-1, keepdim=True)
    return gates, scores


def by_definition(made: Any, x_BTD: Tensor) -> Tensor:
    x_ND = x_BTD.flatten(0, 1)
    activation = ACTIVATIONS[POINT[made.config.expert]]
    gates, _ = gates_of(made, x_ND)
    y = mix(x_ND, gates, made.input_EJD, made.output_EDF, activation, gated=made.config.gated)
    hidden, halves = made.hidden, 2 if made.config.gated else 1
    for s in range(made.config.shared):
        w_in = made.shared_input_JD.view(halves, -1, made.width)[:, s * hidden : (s + 1) * hidden].flatten(0, 1)
        w_out = made.shared_output_DF[:, s * hidden : (s + 1) * hidden]
        y = y + expert(x_ND, w_in, w_out, activation, gated=made.config.gated)
    return y.view_as(x_BTD)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"expert": "swiglu", "experts": 4, "top": 1},
    {"fine": 2, "shared": 2, "experts": 4, "renormalise": False, "expert": "swiglu"},
    {"scores": "sigmoid", "bias_rate": 0.1, "shared": 1, "experts": 5, "top": 3},
    {"expert": "gelu", "experts": 3, "top": 3},
]


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_mixture_is_the_masked_loop_over_all_experts_with_all_gradients(settings: dict[str, Any]) -> None:
    made = moe(**settings)
    x, weight = sample(16).requires_grad_(), sample(16, seed=1)
    wanted = [x, *(p for p in made.parameters() if p.requires_grad)]
    ours, theirs = made(x)[0], by_definition(made, x)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-11)
    a = torch.autograd.grad((ours * weight).sum(), wanted, allow_unused=True)
    b = torch.autograd.grad((theirs * weight).sum(), wanted, allow_unused=True)
    for mine, exact in zip(a, b, strict=True):
        assert mine is not None
        assert exact is not None
        assert torch.allclose(mine, exact, rtol=0, atol=1e-10)


def test_one_expert_is_the_dense_feedforward() -> None:
    made = moe(experts=1, top=1, ratio=4.0)
    dense = building.opened(lambda: Ungated(kind="relu2").build(16))
    dense.input.weight.data.copy_(made.input_EJD[0])
    dense.output.weight.data.copy_(made.output_EDF[0])
    assert torch.allclose(made(sample(16))[0], dense(sample(16))[0], atol=1e-12)


def test_equal_experts_give_the_feedforward_times_the_sum_of_the_gates() -> None:
    made = moe(renormalise=False)
    with torch.no_grad():
        for stack in (made.input_EJD, made.output_EDF):
            stack.copy_(stack[:1].expand_as(stack))
    x = sample(16).flatten(0, 1)
    gates, _ = gates_of(made, x)
    one = expert(x, made.input_EJD[0], made.output_EDF[0], ACTIVATIONS["relu2"], gated=False)
    assert torch.allclose(made(x[None])[0][0], one * gates.sum(-1, keepdim=True), atol=1e-11)


def test_tokens_may_come_in_any_order() -> None:
    made, x = moe(), sample(16, 30, 1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(made(x)[0][:, order], made(x[:, order])[0], atol=1e-12)


def test_losses_are_their_sums() -> None:
    made = moe(balance=0.3, z_loss=0.2, device_balance=0.5, groups=4, renormalise=False)
    x = sample(16)
    _, _, aux = made(x)
    gates, scores = gates_of(made, x.flatten(0, 1))
    count = (gates > 0).double().sum(0)
    f, p = count * 8 / count.sum(), scores.mean(0)
    assert torch.allclose(aux.losses["balance"], 0.3 * (f * p).sum())
    grouped_f, grouped_p = f.view(4, 2).mean(1), p.view(4, 2).sum(1)
    assert torch.allclose(aux.losses["device_balance"], 0.5 * (grouped_f * grouped_p).sum())
    logits = x.flatten(0, 1) @ made.router_ED.T
    assert torch.allclose(aux.losses["z"], 0.2 * logits.exp().sum(-1).log().square().mean())
    assert torch.allclose(aux.statistics["load"], f)


def test_uniform_routing_costs_exactly_the_weight_of_each_loss() -> None:
    scores = torch.full((16, 8), 1 / 8, dtype=torch.float64)
    assert routing.balance_loss(torch.ones(8), scores).item() == pytest.approx(1.0)
    assert routing.device_loss(torch.ones(8), scores, 4).item() == pytest.approx(1.0)
    one_sided = torch.zeros(16, 8, dtype=torch.float64)
    one_sided[:, 0] = 1.0
    assert routing.balance_loss(routing.load(torch.zeros(16, dtype=torch.int64), 8), one_sided).item() == 8.0


def test_no_gradient_flows_through_the_load() -> None:
    made = moe(balance=1.0)
    _, _, aux = made(sample(16))
    assert aux.losses["balance"].requires_grad
    assert not aux.statistics["load"].requires_grad


@pytest.mark.parametrize("drop", ["position", "score"])
def test_a_capacity_drops_the_latest_or_the_least_wanted(drop: str) -> None:
    made = moe(capacity=0.5, drop=drop, experts=4, top=2, renormalise=False)
    x = sample(16)
    gates, _ = gates_of(made, x.flatten(0, 1))
    limit = math.floor(0.5 * 2 * len(gates) / 4)
    kept = gates.clone()
    for e in range(4):
        takers = (gates[:, e] > 0).nonzero().squeeze(1)
        ranked = takers if drop == "position" else takers[gates[takers, e].argsort(descending=True)]
        kept[ranked[limit:], e] = 0.0
    y, _, aux = made.train()(x)
    expected = mix(x.flatten(0, 1), kept, made.input_EJD, made.output_EDF, ACTIVATIONS["relu2"], gated=False)
    assert torch.allclose(y.flatten(0, 1), expected, atol=1e-11)
    dropped = 1 - (kept > 0).sum() / (gates > 0).sum()
    assert float(aux.statistics["drop_rate"]) == pytest.approx(float(dropped))
    assert dropped > 0.2
    assert torch.allclose(made.eval()(x)[0], by_definition(made, x), atol=1e-11)


def test_rounding_up_keeps_one_more() -> None:
    for rounding, kept in (("floor", 2), ("ceil", 3)):
        made = moe(experts=8, top=1, capacity=1.0, rounding=rounding)
        with torch.no_grad():
            made.router_ED.zero_()
            made.router_ED[3] = 1.0
        _, _, aux = made.train()(sample(16, 20, 1).abs())
        assert float(aux.statistics["drop_rate"]) == pytest.approx(1 - kept / 20)
        assert float(aux.statistics["dead_experts"]) == 7
        assert float(aux.statistics["load_entropy"]) == pytest.approx(0.0, abs=1e-9)


def test_the_bias_moves_towards_an_even_load_outside_the_forward() -> None:
    made = moe(experts=4, top=1, bias_rate=0.02, balance=0.0)
    with torch.no_grad():
        made.bias_E.zero_()
        made.router_ED.mul_(0.3)
        made.router_ED[0] += 0.3
    x = sample(16, 200, 1).abs()
    before = made.bias_E.clone()
    entropies = []
    for _ in range(60):
        _, _, aux = made(x)
        assert torch.equal(made.bias_E, before)
        made.after_step(aux.statistics)
        step = torch.sign(1 - aux.statistics["load"]) * 0.02
        assert torch.allclose(made.bias_E, before + step)
        before = made.bias_E.clone()
        entropies.append(float(aux.statistics["load_entropy"]))
    assert entropies[-1] > entropies[0] + 0.2
    assert not made.bias_E.requires_grad


def test_tokens_stay_within_their_best_groups() -> None:
    scores = torch.rand(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outside = routing.outside_best_groups(scores, 4, 2)
    best = scores.view(50, 4, 2).amax(-1).topk(2).indices
    for n in range(50):
        allowed = {int(g) * 2 + i for g in best[n] for i in (0, 1)}
        assert {e for e in range(8) if not outside[n, e]} == allowed
    made = moe(groups=4, top_groups=1)
    assert made(sample(16))[0].isfinite().all()


def test_expert_choice_is_even_and_sees_the_future() -> None:
    made = moe(routing="expert", allow_future=True, experts=4, top=1)
    x = sample(16, 16, 1)
    y, _, aux = made(x)
    assert aux.statistics["load"].tolist() == [1.0] * 4
    changed = x.clone()
    changed[:, -4:] *= -7
    assert (made(changed)[0] - y)[:, :-4].abs().max() > 1e-6


def test_the_router_computes_in_single_precision_under_autocast() -> None:
    made = building.opened(lambda: Config(kind="moe").build(16), dtype=torch.float32)
    x = sample(16).float()
    with torch.autocast("cpu", torch.bfloat16):
        logits = made._route(x.flatten(0, 1).bfloat16())[0]
    assert logits.dtype == torch.float32
    wanted = functional.linear(x.flatten(0, 1).bfloat16().float(), made.router_ED)
    assert torch.allclose(logits, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("expert_kind", ["relu2", "swiglu"])
def test_upcycled_experts_compute_what_the_dense_feedforward_did(expert_kind: str) -> None:
    made = moe(expert=expert_kind, ratio=4.0)
    config = Ungated(kind="relu2") if expert_kind == "relu2" else Gated(kind="swiglu")
    dense = building.opened(lambda: config.build(16))
    upcycle(made, dense.input.weight, dense.output.weight)
    assert torch.allclose(made(sample(16))[0], dense(sample(16))[0], rtol=0, atol=1e-12)


def test_upcycled_slices_add_up_to_the_dense_feedforward() -> None:
    made = moe(expert="swiglu", ratio=6.0, fine=2, shared=2, experts=4, top=2, width=32)
    dense = building.opened(lambda: Gated(kind="swiglu", ratio=6.0).build(32))
    upcycle(made, dense.input.weight, dense.output.weight)
    with torch.no_grad():
        made.output_EDF.zero_()
    assert torch.allclose(made(sample(32))[0], dense(sample(32))[0], rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="hidden width 8 was given"):
        upcycle(made, dense.input.weight, dense.output.weight[:, :8])


def test_flops_and_idle_parameters_count_the_chosen_experts() -> None:
    made = moe(experts=8, top=2)
    per_expert = 2 * 16 * 32
    assert made.idle_parameters() == 6 * per_expert
    assert made.flops(64) == 2 * (8 * 16 + 2 * per_expert)


@pytest.mark.parametrize(
    ("settings", "ahead"),
    [
        ({}, False),
        ({"capacity": 0.5}, False),
        ({"capacity": 0.5, "drop": "score", "experts": 2, "top": 1, "renormalise": False}, True),
        ({"routing": "expert", "allow_future": True}, True),
    ],
)
def test_a_mixture_says_whether_it_looks_ahead_in_training(settings: dict[str, Any], ahead: bool) -> None:
    made = moe(**settings).train()
    x = sample(16)[:1]
    changed = x.clone()
    changed[:, -4:] *= 9
    with torch.no_grad():
        same = torch.allclose(made(x)[0][:, :-4], made(changed)[0][:, :-4], rtol=0, atol=1e-9)
    assert made.looks_ahead() == ahead
    assert same != ahead
