"""Depth techniques against unrolled copies, scalar loops and closed figures, in float64."""

import copy
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from fairway.model.block import Block
from fairway.model.depth.act import Halting
from fairway.model.depth.mixture_of_depths import MixtureOfDepths, Routed
from fairway.model.depth.shared import Config as SharedConfig
from fairway.model.lm import LanguageModel
from fairway.model.parts import NO_CONTEXT, Depth, after_step, parameter_roles
from fairway.model.stack import step_signal
from laws import building
from laws.mixers import sample
from laws.models import VOCABULARY, built_model, model_config, sample_tokens, technique


def depth(**settings: Any) -> Any:
    parts = settings.pop("parts", {})
    config = model_config(depth=settings, mixer={"kind": "attention", "heads": 3}, **parts)
    made = building.built(lambda: LanguageModel(config, VOCABULARY)).depth
    assert isinstance(made, Depth)
    return made


@pytest.mark.parametrize(
    ("settings", "owners"),
    [
        ({"layers": 4}, [0, 0, 0, 0]),
        ({"layers": 4, "groups": 2}, [0, 0, 2, 2]),
        ({"layers": 4, "inner": 2}, [0, 1, 0, 1]),
        ({"layers": 8, "groups": 2, "inner": 2}, [0, 1, 0, 1, 4, 5, 4, 5]),
    ],
)
def test_groups_share_the_weights_of_their_first_blocks(settings: dict[str, Any], owners: list[int]) -> None:
    config = SharedConfig(kind="shared", **settings)
    assert [config.owner(layer) for layer in range(config.layers)] == owners


@pytest.mark.parametrize("share", ["all", "attention", "ffn"])
def test_shared_weights_get_the_sum_of_the_gradients_of_separate_ones(share: str) -> None:
    shared = depth(kind="shared", layers=3, share=share)
    plain = depth(kind="plain", layers=3)
    plain.load_state_dict(shared.state_dict())
    x, weight = sample(), sample(seed=1)
    for made in (shared, plain):
        (made(x)[0] * weight).sum().backward()
    assert torch.allclose(shared(x)[0], plain(x)[0], rtol=0, atol=1e-12)
    separate = dict(plain.named_parameters())
    for _, parameter in shared.named_parameters():
        twins = [n for n, p in shared.named_parameters(remove_duplicate=False) if p is parameter]
        assert torch.allclose(parameter.grad, torch.stack([separate[n].grad for n in twins]).sum(0), atol=1e-10)
    expected = {"all": 1, "attention": 1, "ffn": 3}[share]
    assert len({id(block.mixer) for block in shared.parts}) == expected
    assert len({id(block.ffn) for block in shared.parts}) == {"all": 1, "attention": 3, "ffn": 1}[share]


def test_norms_may_stay_separate_where_all_else_is_shared() -> None:
    blocks = depth(kind="shared", layers=3, norms_per_layer=True).parts
    assert len({id(block.mixer_norm) for block in blocks}) == 3
    assert len({id(block.ffn) for block in blocks}) == 1


def test_a_shared_balancing_bias_is_moved_by_the_mean_load_of_all_layers() -> None:
    ffn = {"kind": "moe", "experts": 2, "top": 1, "bias_rate": 0.5}
    model: Any = built_model(model_config(depth={"kind": "shared", "layers": 2}, ffn=ffn), awake=False)
    loads = {"depth.blocks.0.ffn.load": torch.tensor([0.2, 1.8]), "depth.blocks.1.ffn.load": torch.tensor([1.2, 0.8])}
    after_step(model, loads)
    assert model.depth.blocks[0].ffn.bias_E.tolist() == [0.5, -0.5]


def test_looping_a_block_once_is_the_plain_block() -> None:
    once, plain = depth(kind="recurrent", layers=1, step="none"), depth(kind="plain", layers=1)
    plain.blocks.load_state_dict(once.core.state_dict())
    assert torch.allclose(once(sample())[0], plain(sample())[0], rtol=0, atol=1e-12)


def test_loops_are_their_equation() -> None:
    made = depth(kind="recurrent", layers=5, prelude=1, coda=1, gains=True, inject="linear", step="learned")
    x = sample()
    start = h = made.prelude[0](x)[0]
    for loop in range(3):
        entry = h + made.step_LD[loop] + start @ made.inject.weight.T
        h = h + made.gain_LD[loop] * (made.core[0](entry)[0] - h)
    assert torch.allclose(made(x)[0], made.coda[0](h)[0], rtol=0, atol=1e-10)


def test_the_step_signal_is_the_published_sinusoid() -> None:
    signal = step_signal(3, 10, sample())
    for j in range(5):
        angle = torch.tensor(3 / 10_000 ** (2 * j / 10), dtype=torch.float64)
        assert torch.allclose(signal[2 * j], angle.sin())
        assert torch.allclose(signal[2 * j + 1], angle.cos())


def test_loops_begin_at_their_share_of_training_and_may_be_more_in_tests() -> None:
    made = depth(kind="recurrent", layers=3, start_at=0.5, test_loops=5)
    assert [made.train().loops(p) for p in (0.0, 0.49, 0.5, 1.0)] == [1, 1, 3, 3]
    assert made.eval().loops(0.0) == 5
    x = sample()
    made.train()
    early, late = made(x, None, NO_CONTEXT.with_(progress=0.1))[0], made(x, None, NO_CONTEXT.with_(progress=0.9))[0]
    assert (early - late).abs().max() > 1e-6


def test_halting_keeps_the_published_books() -> None:
    halting = Halting(torch.zeros(1, 1, 1, dtype=torch.float64), 0.01)
    weights = [float(halting.step(torch.tensor([[0.3]]), last=False)) for _ in range(6)]
    assert weights == pytest.approx([0.3, 0.3, 0.3, 0.1, 0.0, 0.0])
    assert float(halting.remainder_BT) == pytest.approx(0.1)
    assert float(halting.steps_BT) == 4
    running = 1.0
    for u in weights:
        running *= 1 - u
    ut = [0.3 * 0.7 * 0.7 * 0.9, 0.3 * 0.7 * 0.9, 0.3 * 0.9, 0.1]
    assert sum(ut) == pytest.approx(0.6913)
    assert 1 - running == pytest.approx(sum(ut))


@pytest.mark.parametrize("mode", ["graves", "ut"])
def test_adaptive_time_is_a_loop_over_tokens(mode: str) -> None:
    made = depth(kind="act", layers=4, mode=mode, bias=-0.5)
    with torch.no_grad():
        made.halt_D.mul_(8)
        x = sample()
        output, _, aux = made(x)
        states, chances, h = [], [], x
        for step in range(4):
            chances.append(torch.sigmoid(h @ made.halt_D + made.halt_bias))
            h = made.block(h + made.signal.scale * step_signal(step, 48, h))[0]
            states.append(h)
    steps, remainders = [], []
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            p = [float(c[b, t]) for c in chances]
            weights, count, remainder = weights_of(p, 0.99)
            steps.append(count)
            remainders.append(remainder)
            expected = torch.zeros(48, dtype=torch.float64)
            for u, state in zip(weights, states, strict=False):
                expected = expected + u * state[b, t] if mode == "graves" else u * state[b, t] + (1 - u) * expected
            assert torch.allclose(output[b, t], expected, atol=1e-10)
            assert sum(weights) == pytest.approx(1.0)
    assert len(set(steps)) > 1
    assert float(aux.statistics["steps"]) == pytest.approx(sum(steps) / len(steps))
    pondered = 0.01 * (sum(steps) + sum(remainders)) / len(steps)
    assert float(aux.losses["ponder"]) == pytest.approx(pondered)


def weights_of(p: list[float], threshold: float) -> tuple[list[float], int, float]:
    """Weights, number of steps and remainder of one token, by the book."""
    spent, weights = 0.0, []
    for chance in p:
        if spent + chance > threshold:
            weights.append(1 - spent)
            return weights, len(weights), 1 - spent
        spent += chance
        weights.append(chance)
    weights[-1] += 1 - spent
    return weights, len(weights), 1 - spent


def test_the_ponder_loss_reaches_the_halting_weights_through_the_remainder() -> None:
    made = depth(kind="act", layers=4)
    _, _, aux = made(sample())
    aux.losses["ponder"].backward()
    step, kept = 1e-6, made.halt_bias.item()
    ponder = []
    for value in (kept + step, kept - step):
        made.halt_bias.data.fill_(value)
        ponder.append(float(made(sample())[2].losses["ponder"].detach()))
    assert made.halt_bias.grad.item() == pytest.approx((ponder[0] - ponder[1]) / (2 * step), rel=1e-4)


def test_skips_are_their_equation() -> None:
    made, x, x0 = depth(kind="skip", layers=5), sample(), sample(seed=4)
    a, b, w = made.keep_LD, made.input_LD, made.skip_HD
    h, saved = x, []
    for layer, block in enumerate(made.parts):
        if layer >= 3:
            h = h + w[layer - 3] * saved.pop()
        h = block(a[layer] * h + b[layer] * x0)[0]
        if layer < 2:
            saved.append(h)
    assert torch.allclose(made(x, None, NO_CONTEXT.with_(embedded_BTD=x0))[0], h, rtol=0, atol=1e-10)


def test_late_layers_run_in_parallel_if_asked() -> None:
    blocks = depth(kind="skip", layers=4, parallel_from=2).parts
    assert [isinstance(block, Block) and block.parallel for block in blocks] == [False, False, True, True]


def routed(**settings: Any) -> tuple[MixtureOfDepths, Any]:
    made = depth(kind="mixture_of_depths", layers=2, **settings)
    block = made.blocks[1]
    assert isinstance(made, MixtureOfDepths)
    assert isinstance(block, Routed)
    return made, block


def dense_masked(block: Routed, x: Tensor, chosen: Tensor) -> Tensor:
    """One sequence after another, attention among chosen tokens only, at their own positions."""
    y = x.clone()
    r = x @ block.router.weight[0]
    for b in range(len(x)):
        index = chosen[b].nonzero().squeeze(1)
        if len(index):
            context = NO_CONTEXT.with_(positions_BT=index[None])
            inside = block.block(x[b : b + 1, index], None, context)[0][0]
            y[b, index] = x[b, index] + r[b, index, None] * (inside - x[b, index])
    return y


def test_training_takes_the_tokens_with_the_largest_r_in_their_order() -> None:
    _, block = routed(capacity=0.3)
    x = sample()
    r = x @ block.router.weight[0]
    chosen = r >= r.topk(5, dim=1).values[:, -1:]
    assert torch.allclose(block.train()(x)[0], dense_masked(block, x, chosen), rtol=0, atol=1e-10)
    assert block.chosen(19) == 5


def test_gradients_in_training_are_those_of_one_sequence_after_another() -> None:
    _, block = routed(capacity=0.3)
    x, up = sample().requires_grad_(), sample(seed=2)
    by = [x, *block.parameters()]
    y, _, aux = block.train()(x)
    seen = torch.autograd.grad((y * up).sum() + aux.losses["choice"], by)
    r = x @ block.router.weight[0]
    chosen = r >= r.topk(5, dim=1).values[:, -1:]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(r, chosen.to(r.dtype))
    wanted = torch.autograd.grad((dense_masked(block, x, chosen) * up).sum() + 0.01 * loss, by)
    assert all(torch.allclose(one, other, rtol=0, atol=1e-9) for one, other in zip(seen, wanted, strict=True))


def test_outside_training_a_token_is_chosen_by_itself() -> None:
    _, block = routed()
    x = sample()
    chosen = x @ block.router.weight[0] > 0
    assert torch.allclose(block.eval()(x)[0], dense_masked(block, x, chosen), rtol=0, atol=1e-10)


def test_the_choice_in_training_sees_the_future_and_that_outside_does_not() -> None:
    made, _ = routed(capacity=0.3)
    x = sample()
    changed = x.clone()
    changed[:, -3:] *= -5
    with torch.no_grad():
        assert (made.train()(x)[0] - made.train()(changed)[0])[:, :-3].abs().max() > 1e-6
        past, past_of_changed = made.eval()(x)[0][:, :-3], made.eval()(changed)[0][:, :-3]
    assert torch.allclose(past, past_of_changed, rtol=0, atol=1e-12)


def test_a_routed_block_for_all_tokens_with_gate_one_is_the_plain_block() -> None:
    _, block = routed(capacity=1.0, gate="twice_sigmoid")
    x = sample()
    with torch.no_grad():
        block.router.weight.zero_()
    assert torch.allclose(block.train()(x)[0], block.block(x)[0], rtol=0, atol=1e-12)


def drawn(capacity: Fraction, draw: int, layer: int, length: int) -> list[int]:
    """One position of every stretch of `1 / capacity`, by Mueller's hash in plain whole numbers."""

    def hashed(number: int) -> int:
        number %= 2**32
        for _ in range(2):
            number = (number ^ number >> 16) * 0x45D9F3B % 2**32
        return number ^ number >> 16

    stretches: dict[int, list[int]] = {}
    for position in range(2 * length):
        stretches.setdefault(math.floor(position * capacity), []).append(position)
    taken = (mine[hashed(hashed(k + 256 * draw) + layer) % len(mine)] for k, mine in stretches.items())
    return [position for position in taken if position < length]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("capacity", "exact"), [(0.25, Fraction(1, 4)), (0.3, Fraction(3, 10)), (1.0, Fraction(1))])
def test_a_random_route_takes_one_position_of_every_stretch(training: bool, capacity: float, exact: Fraction) -> None:
    _, block = routed(capacity=capacity, route="random", draw=3)
    x = sample()
    chosen = torch.zeros(x.shape[:2], dtype=torch.bool)
    chosen[:, drawn(exact, 3, 1, x.shape[1])] = True
    assert torch.allclose(block.train(training)(x)[0], dense_masked(block, x, chosen), rtol=0, atol=1e-10)
    assert block.chosen(x.shape[1]) == int(chosen[0].sum())
    assert not block.looks_ahead()


def test_a_random_route_differs_by_layer_and_draw_and_takes_every_place_of_a_stretch() -> None:
    routes = {(layer, draw): drawn(Fraction(1, 8), draw, layer, 4096) for layer in range(3) for draw in range(3)}
    assert len({tuple(route) for route in routes.values()}) == 9
    counts = torch.tensor([place % 8 for route in routes.values() for place in route]).bincount(minlength=8)
    assert counts.min() > 0.85 * counts.double().mean()


def test_the_router_learns_to_make_the_causal_choice() -> None:
    _, block = routed(capacity=0.3)
    x = sample(length=40)
    optimizer = torch.optim.Adam([block.router.weight], lr=0.05)
    agreement = []
    for _ in range(150):
        _, _, aux = block.train()(x)
        optimizer.zero_grad()
        (aux.losses["choice"] / 0.01).backward()
        optimizer.step()
        agreement.append(float(aux.statistics["causal_agreement"]))
    assert agreement[-1] > 0.9


def test_the_predictor_trains_without_touching_the_stream() -> None:
    _, block = routed(decide="predictor")
    x = sample().requires_grad_()
    _, _, aux = block.train()(x)
    aux.losses["choice"].backward()
    assert x.grad is None
    assert block.router.weight.grad is None
    assert block.predictor.input.weight.grad.any()


def test_documents_stay_apart_when_their_first_token_is_not_chosen() -> None:
    made, block = routed()
    x, border = sample(), 9
    starts = torch.zeros(x.shape[:2], dtype=torch.bool)
    starts[:, border] = True
    with torch.no_grad():
        x[:, border] = -10 * block.router.weight[0]
    together = block.eval()(x, None, NO_CONTEXT.with_(starts_BT=starts))[0]
    assert torch.allclose(together[:, border:], block(x[:, border:])[0], rtol=0, atol=1e-9)
    assert made is not None


@pytest.mark.parametrize("kind", ["shared", "recurrent", "act", "skip", "mixture_of_depths"])
def test_every_parameter_of_a_deep_model_has_one_role_and_copies_keep_sharing(kind: str) -> None:
    model = built_model(model_config(depth=technique(kind)))
    twin = copy.deepcopy(model)
    assert set(parameter_roles(twin)) == {name for name, _ in model.named_parameters()}
    tokens = sample_tokens()
    assert torch.equal(twin.eval()(tokens).hidden_BTD, model.eval()(tokens).hidden_BTD)


@pytest.mark.parametrize("kind", ["plain", "shared", "recurrent", "act", "skip", "mixture_of_depths"])
def test_statistics_of_experts_find_their_way_back_from_any_depth(kind: str) -> None:
    ffn = {"kind": "moe", "experts": 3, "bias_rate": 0.5}
    model = built_model(model_config(depth=technique(kind), ffn=ffn), awake=False).train()
    after_step(model, model(sample_tokens()).aux.statistics)
    biases = [value for name, value in model.named_parameters() if name.endswith("bias_E")]
    assert biases
    for bias in biases:
        assert bias.abs().max() == 0.5
