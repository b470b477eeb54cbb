"""Each quantiser against its definition: levels, scales, codebooks, straight-through gradients."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from compress.examples import half_error, hessian, layer, part, text
from compress.training import Loop, loop
from fairway.artifact.format import unpack
from fairway.artifact.packing.nf4 import LEVELS
from fairway.artifact.steps import steps_of
from fairway.compress.calibrate import linear_weights
from fairway.compress.parts import Piece, Statistics
from fairway.compress.quantize import binary, gptq, kmeans, nf4, qat, rtn, ternary
from fairway.compress.steps import row_exponents, row_steps
from fairway.core.errors import TrainingError
from fairway.model.parts import Role


def piece(weight_RC: Tensor, x_NC: Tensor | None = None) -> Piece:
    statistics = None if x_NC is None else Statistics(len(x_NC), x_NC.T @ x_NC)
    return Piece("w", Role.MATRIX, tuple(weight_RC.shape), weight_RC, statistics)


def gaussian(rows: int = 32, columns: int = 128) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * 0.05


def test_nf4_levels_are_normal_quantiles_with_an_exact_zero() -> None:
    """Even quantiles of each half from the tail that keeps the ends finite, scaled to one."""
    offset = 0.9677083
    upper = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    lower = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate((lower, [0.0], upper))) / upper.max()
    assert np.allclose(LEVELS, expected, atol=1e-5)
    assert LEVELS[7] == 0.0


def test_nf4_takes_the_nearest_level_of_each_group() -> None:
    weight_RC = gaussian()
    packed = nf4.Config().build().quantize(piece(weight_RC), -8.0)
    groups = weight_RC.reshape(-1, 64)
    scales = groups.abs().amax(dim=1, keepdim=True)
    nearest = ((groups / scales)[..., None] - torch.tensor(LEVELS)).abs().argmin(dim=2)
    ideal = (torch.tensor(LEVELS)[nearest] * scales).reshape(weight_RC.shape)
    found = unpack("w", packed)
    assert float((found - ideal).norm() / ideal.norm()) < 0.05
    assert float((found - weight_RC).norm()) < 1.05 * float((ideal - weight_RC).norm())


def test_ternary_is_a_sign_or_zero_times_the_mean_of_the_survivors() -> None:
    weight_RC = gaussian()
    packed = ternary.Config().build().quantize(piece(weight_RC), -8.0)
    codes_RC = torch.from_numpy(packed.arrays["codes"].reshape(32, 128))
    assert set(codes_RC.unique().tolist()) == {-1, 0, 1}
    assert bool((codes_RC * weight_RC >= 0).all())
    found = unpack("w", packed)
    for row in range(32):
        scale = weight_RC[row][codes_RC[row] != 0].abs().mean()
        assert float(found[row].abs().max()) == pytest.approx(float(scale), rel=0.01)
    absmean_R = weight_RC.abs().mean(dim=1, keepdim=True)
    simple = torch.round(weight_RC / absmean_R).clamp(-1, 1) * absmean_R
    assert float((found - weight_RC).norm()) < float((simple - weight_RC).norm())


def test_binary_is_the_sign_times_the_mean_magnitude() -> None:
    weight_RC = gaussian()
    packed = binary.Config().build().quantize(piece(weight_RC), -8.0)
    expected = torch.sign(weight_RC) * weight_RC.abs().mean(dim=1, keepdim=True)
    assert torch.allclose(unpack("w", packed), expected, rtol=0.01)
    grouped = unpack("w", binary.Config(group=16).build().quantize(piece(weight_RC), -8.0))
    blocks = weight_RC.reshape(-1, 16)
    expected = (torch.sign(blocks) * blocks.abs().mean(dim=1, keepdim=True)).reshape(32, 128)
    assert torch.allclose(grouped, expected, rtol=0.01)


def test_rounding_follows_the_deviation_of_each_row() -> None:
    weight_RC = gaussian() * torch.logspace(-2, 2, 32)[:, None]
    for power in (1.0, 0.0):
        packed = rtn.Config(row_power=power).build().quantize(piece(weight_RC), -2.0)
        exponents = packed.arrays["steps"] + packed.settings["base"]
        steps = 2.0 ** (exponents / packed.settings["resolution"])
        wanted = weight_RC.square().mean(dim=1).sqrt().numpy() ** power
        wanted = wanted * float(weight_RC.square().mean().sqrt()) ** (1 - power) / 4
        assert np.allclose(steps, wanted, rtol=0.05)


def test_gptq_without_correlation_is_rounding_to_nearest() -> None:
    weight_RC = gaussian()
    eye = torch.eye(128, dtype=torch.float64)
    mine = gptq.Config().build().quantize(Piece("w", Role.MATRIX, (32, 128), weight_RC, Statistics(2, eye)), -1.0)
    plain = rtn.Config().build().quantize(piece(weight_RC), -1.0)
    assert np.array_equal(mine.arrays["codes"], plain.arrays["codes"])


@pytest.mark.parametrize("order", [True, False])
def test_gptq_errs_less_on_the_layers_outputs(order: bool) -> None:
    wins = []
    for seed in range(10):
        weight_RC, x_NC = layer(16, 64, seed=seed)
        mine = gptq.Config(order=order).build().quantize(piece(weight_RC.float(), x_NC), 0.0)
        plain = rtn.Config().build().quantize(piece(weight_RC.float()), 0.0)
        errors = [half_error(unpack("w", p).double() - weight_RC, hessian(x_NC)) for p in (mine, plain)]
        wins.append(errors[0] / errors[1])
    assert sum(wins) / len(wins) < 0.7


def test_k_means_shares_the_means_of_its_clusters() -> None:
    weight_RC = gaussian(8, 64)
    packed = kmeans.Config(clusters=8).build().quantize(piece(weight_RC), -8.0)
    codes = torch.from_numpy(packed.arrays["codes"].astype(np.int64)).view(8, 64)
    found = unpack("w", packed)
    for code in codes.unique():
        assert float(found[codes == code][0]) == pytest.approx(
            float(weight_RC[codes == code].mean()), rel=2e-3, abs=1e-5
        )
    assert len(codes.unique()) == 8


def test_straight_through_rounds_forward_and_passes_the_gradient_unchanged() -> None:
    weight = gaussian().requires_grad_()
    factor = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    rounded = qat.straight_through(weight, -1.0, 1.0)
    (rounded * factor).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factor)
    packed = rtn.Config().build().quantize(piece(weight.detach()), -1.0)
    assert torch.allclose(rounded.detach(), unpack("w", packed), atol=1e-7)


def late(progress: float) -> Loop:
    """A loop that has come so far."""
    made = loop(100)
    made.step = round(100 * progress)
    return made


def test_training_with_rounding_is_inactive_before_its_start_and_active_after() -> None:
    tokens_BT = text()[0]
    for progress, active in ((0.5, False), (0.9, True)):
        run = late(progress)
        run.model.train()
        plain = run.model(tokens_BT).hidden_BTD.detach()
        hook = qat.Rounded(qat.Config(strength=0.0))
        hook.start(run)
        rounded = run.model(tokens_BT).hidden_BTD
        assert torch.equal(plain, rounded.detach()) is not active
        assert (hook.stepped(run)["qat/uses"] > 0) is active
        rounded.sum().backward()
        weight = part(run.model, "depth.blocks.0.ffn.input").weight
        assert isinstance(weight, torch.nn.Parameter)
        assert weight.grad is not None
        hook.finish(run)
        assert torch.equal(run.model(tokens_BT).hidden_BTD.detach(), plain)


@pytest.mark.filterwarnings("ignore:Dynamo:UserWarning")
def test_a_graph_compiled_before_the_start_is_compiled_anew_with_the_rounding_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAIRWAY_NATIVE", "0")
    roundings: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:  # noqa: ARG001
        roundings.append(sum(node.op.startswith("call") and "round" in str(node.target) for node in graph.graph.nodes))
        return graph

    run, hook, tokens_BT = loop(100, depth=1, position="none"), qat.Rounded(qat.Config(strength=0.0)), text()[0]
    run.model.train()
    hook.start(run)
    compiled = torch.compile(run.model, backend=backend)
    plain = compiled(tokens_BT).hidden_BTD.detach()
    hook.stepped(run)
    assert roundings
    assert not sum(roundings)
    run.step = 90
    assert hook.stepped(run) == {"qat/uses": 0.0}
    roundings.clear()
    rounded = compiled(tokens_BT).hidden_BTD
    maps = len(linear_weights(run.model))
    assert sum(roundings) >= maps, "the compiled graphs round the weight of every map"
    assert hook.stepped(run) == {"qat/uses": float(maps)}
    assert torch.allclose(rounded, run.model(tokens_BT).hidden_BTD, atol=1e-6)
    assert not torch.allclose(rounded, plain, atol=1e-3)
    rounded.sum().backward()
    assert part(run.model, "depth.blocks.0.ffn.input").weight.grad is not None


@pytest.mark.parametrize("power", [0.0, 0.4, 1.0])
def test_steps_in_a_graph_are_those_of_the_artifact(power: float) -> None:
    weight_RC = gaussian() * torch.logspace(-12, 12, 32)[:, None]
    weight_RC[3] = 0
    expected_R = torch.from_numpy(steps_of(row_exponents(weight_RC, -0.5, power)))
    assert torch.allclose(row_steps(weight_RC, -0.5, power), expected_R, rtol=1e-6)


def test_rounding_that_is_silently_inactive_is_an_error() -> None:
    hook = qat.Rounded(qat.Config())
    run = late(0.95)
    hook.start(run)
    with pytest.raises(TrainingError, match="no linear map was rounded"):
        hook.stepped(run)


def test_rounded_training_sees_the_steps_that_the_artifact_will_have() -> None:
    weight_RC = gaussian()
    assert row_exponents(weight_RC, -0.5, 1.0).tolist() == (
        lambda packed: (packed.arrays["steps"] + packed.settings["base"]).tolist()
    )(qat.Config().build().quantize(piece(weight_RC), -0.5))


@pytest.mark.parametrize("bits", [8, 4])
def test_inputs_are_rounded_by_token_to_few_integers_and_slopes_pass(bits: int) -> None:
    x_ND = torch.randn(5, 33, generator=torch.Generator().manual_seed(3)) * torch.tensor([1e-3, 1, 7, 100, 0])[:, None]
    x_ND.requires_grad_()
    rounded_ND = qat.rounded_input(x_ND, bits)
    for x_D, rounded_D in zip(x_ND.detach().tolist(), rounded_ND.tolist(), strict=True):
        step = max(abs(x) for x in x_D) / (2 ** (bits - 1) - 1)
        expected = [round(x / step) * step if step else 0.0 for x in x_D]
        assert rounded_D == pytest.approx(expected, abs=1e-5 * step + 1e-12)
    rounded_ND.sum().backward()
    assert x_ND.grad is not None
    assert torch.equal(x_ND.grad, torch.ones_like(x_ND))


def test_rounded_activations_reach_every_map_in_training_and_in_use_and_end_with_it() -> None:
    run, tokens_BT = late(0.9), text()[0]
    hook = qat.Rounded(qat.Config(strength=-8.0, activation_bits=3))
    run.model.train()
    plain = run.model(tokens_BT).hidden_BTD.detach()
    seen: dict[torch.nn.Module, Tensor] = {}
    hook.start(run)
    for module in linear_weights(run.model):
        module.register_forward_pre_hook(lambda m, x: seen.update({m: x[0].detach()}))
    assert not torch.allclose(run.model(tokens_BT).hidden_BTD.detach(), plain, atol=1e-3)
    hook.finish(run)
    assert len(seen) == len(linear_weights(run.model))
    for x in seen.values():
        step = x.abs().amax(dim=-1, keepdim=True) / 3
        assert torch.allclose((x / step).round() * step, x, atol=1e-5)
    run.model.eval()
    exact = run.model(tokens_BT).hidden_BTD.detach()
    seen.clear()
    with qat.integer_inputs(run.model, 3):
        coarse = run.model(tokens_BT).hidden_BTD.detach()
    with qat.integer_inputs(run.model, 8):
        fine = run.model(tokens_BT).hidden_BTD.detach()
    assert 0 < float((fine - exact).norm()) < 0.1 * float((coarse - exact).norm())
    assert torch.equal(run.model(tokens_BT).hidden_BTD.detach(), exact)
