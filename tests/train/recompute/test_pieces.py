"""Recomputation along time: the same values, states and gradients, for memory near that of inputs and outputs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fairway.core.config import Slot
from fairway.core.seed import generator
from fairway.model.block import Block
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.mixer.attention import Config as Attention
from fairway.model.parts import NO_CONTEXT, Context, Mixer, MixerConfig, State, Stateful
from fairway.model.values import Aux, BlockRunner
from fairway.train import recomputation
from fairway.train.recomputation import Pieces, in_pieces, may_be_cut, measure, states_kept, stretches
from fairway.train.recompute.none import Config as Nothing
from fairway.train.recompute.pieces import Config
from laws.live_memory import Memory

MIXERS = Slot("fairway.model.mixer", "attention", pattern=True)
RECURRENT = sorted(set(MIXERS.kinds()) - {"attention"})
ATTENTION = {"kind": "attention", "heads": 2}
TIME, LENGTH = 45, 16


def language_model(mixer: Any, dtype: torch.dtype = torch.float64, **more: Any) -> LanguageModel:
    config = {"width": 32, "depth": 2, "context": 64, "mixer": mixer, **more}
    model = ModelConfig.read(config).build(64, seed=0)
    for index, parameter in enumerate(model.parameters()):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator(4, index))
    return model.to(dtype).train()


def first_block(model: LanguageModel) -> Block:
    return next(module for module in model.modules() if isinstance(module, Block))


def results(model: LanguageModel, runner: BlockRunner | None, starts: bool = False) -> list[Tensor]:
    """Hidden vectors, the final state, and every gradient of a loss of both."""
    model.block_runner = runner
    tokens_BT = torch.randint(0, 64, (2, TIME), generator=generator(1))
    starts_BT = torch.rand(2, TIME, generator=generator(2)) < 0.1 if starts else None
    output = model(tokens_BT, starts_BT=starts_BT)
    seen = [output.hidden_BTD, *output.state]
    loss = sum(
        (x.double() * torch.randn(x.shape, generator=generator(3, index), dtype=torch.float64)).sum()
        for index, x in enumerate(seen)
        if x.requires_grad
    )
    assert isinstance(loss, Tensor)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [x.detach() for x in (*seen, *gradients) if x is not None]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    assert len(found) == len(expected)
    assert all(a.shape == b.shape for a, b in zip(found, expected, strict=True))
    return max(
        float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-6))
        for a, b in zip(found, expected, strict=True)
        if b.numel()
    )


@pytest.mark.parametrize("kind", [*RECURRENT, ["mamba2", ATTENTION]], ids=str)
@pytest.mark.parametrize("starts", [False, True])
def test_values_states_and_gradients_are_those_of_the_whole(kind: Any, starts: bool) -> None:
    model = language_model(kind)
    if starts and not model.config.isolates_documents():
        pytest.skip("this mixer does not keep documents apart")
    expected = results(model, None, starts)
    assert worst(results(model, Pieces(LENGTH), starts), expected) < 1e-9


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("autocast", [False, True])
def test_computing_a_piece_again_changes_no_bit(kind: str, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model(kind, torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        again = results(model, Pieces(LENGTH))
        monkeypatch.setattr(recomputation, "_checkpoint", lambda function, *inputs: function(*inputs))
        kept = results(model, Pieces(LENGTH))
    assert all(map(torch.equal, again, kept))


def test_value_embeddings_and_windowed_attention_are_cut_too() -> None:
    mixer = {"kind": "attention", "heads": 2, "window": 8}
    model = language_model(mixer, embedding={"kind": "value"})
    assert may_be_cut(first_block(model), LENGTH, TIME)
    expected = results(model, None, starts=True)
    assert worst(results(model, Pieces(LENGTH), starts=True), expected) < 1e-9


class Forgetful:
    """Runs pieces without the state before them."""

    def __call__(self, block: Any, x_BTD: Tensor, state: State | None, context: Context) -> tuple[Tensor, State, Aux]:
        pieces = zip(x_BTD.split(LENGTH, 1), context.pieces(LENGTH, -(-TIME // LENGTH)), strict=True)
        outputs = [block(piece, state, here) for piece, here in pieces]
        return torch.cat([y for y, *_ in outputs], 1), outputs[-1][1], Aux()


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_runner_that_forgets_the_state_is_caught(kind: str) -> None:
    model = language_model(kind)
    assert worst(results(model, Forgetful()), results(model, None)) > 1e-3


def evaluations(model: LanguageModel) -> list[int]:
    """Tokens of every call of a block in a training step, in order."""
    seen: list[int] = []
    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))  # noqa: ARG005
    results(model, Pieces(LENGTH))
    return seen


def test_recurrent_blocks_run_piece_by_piece_and_attention_whole() -> None:
    assert evaluations(language_model("gla", depth=1)) == [16, 16, 13, 13, 16, 16]
    assert evaluations(language_model(ATTENTION, depth=1)) == [TIME, TIME]
    assert evaluations(language_model("gla", depth=1, ffn={"kind": "moe", "experts": 4, "top": 2})) == [TIME, TIME]


def test_a_window_that_a_piece_does_not_fill_grows_the_state() -> None:
    block = first_block(language_model({"kind": "attention", "heads": 2, "window": 32}))
    assert not may_be_cut(block, 16, 64)
    assert may_be_cut(block, 31, 64)
    assert not may_be_cut(block, 64, 64)


def peak(part: Stateful, tokens: int, length: int | None) -> float:
    """Peak of a training step over the bytes of its input, its output and their gradients, of which it keeps one."""
    x_BTD = torch.randn(1, tokens, 64, generator=generator(5)).requires_grad_()
    assert isinstance(part, Mixer)
    with Memory() as live:
        y_BTD = part(x_BTD)[0] if length is None else in_pieces(part, x_BTD, None, NO_CONTEXT, length)[0]
        y_BTD.backward(torch.ones_like(y_BTD))
    return live.peak / (4 * x_BTD.nbytes)


@pytest.mark.parametrize("kind", RECURRENT)
def test_memory_is_linear_in_length_and_in_pieces_near_that_of_inputs_and_outputs(kind: str) -> None:
    config = MIXERS.config(kind)(kind=kind)
    assert isinstance(config, MixerConfig)
    mixer = first_block(language_model(config.plain(), torch.float32, width=64, depth=1)).mixer
    unit = 64 if kind == "ttt_mlp" else 256  # it keeps many times more of a token
    whole = [peak(mixer, count * unit, None) for count in (4, 16)]
    assert whole[1] < 1.1 * whole[0]
    tokens, length, most = (2048, 64, 1.8) if kind == "ttt_mlp" else (8192, 128, 1.4)  # its state weighs 128 inputs
    assert peak(mixer, tokens, length) < min(most, 0.5 * whole[1])


def test_large_states_are_kept_at_the_ends_of_stretches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stretches(32, 100, 200) == [1]
    assert stretches(64, 200, 200) == [8, 1]
    assert stretches(64, 500, 200) == [16, 4, 1]
    assert [stretches(count, 10**9, 1) for count in (1, 2, 4)] == [[1], [1], [2, 1]]
    assert [states_kept(64, plan) for plan in ([1], [8, 1], [16, 4, 1])] == [[63], [7, 7], [3, 3, 3]]
    assert states_kept(50, [16, 4, 1]) == [3, 3, 3]
    model = language_model({"kind": "ttt_mlp", "heads": 2, "mini_batch": 4}, depth=1)
    expected = results(model, None)
    for plan, length in (([2, 1], LENGTH), ([4, 2, 1], 6)):
        monkeypatch.setattr(recomputation, "stretches", lambda *_, plan=plan: plan)
        assert worst(results(model, Pieces(length)), expected) < 1e-9
    monkeypatch.setattr(recomputation, "stretches", lambda *_: [2, 1])
    assert evaluations(model) == [16, 16, 13, 13, 16, 16, 16]


def gradients_of(weight_T: Tensor, runs: int = 1) -> list[Tensor]:
    """Gradients by the input of a loss of the outputs weighted by their places, in pieces and of the whole."""
    mixer = first_block(language_model("gla", depth=1)).mixer
    found = []
    for length in (LENGTH, TIME):
        x_BTD = torch.randn(2, TIME, 32, generator=generator(6), dtype=torch.float64).requires_grad_()
        y_BTD, _ = in_pieces(mixer, x_BTD, None, NO_CONTEXT, length)
        loss = (y_BTD[:, weight_T > 0].square() * weight_T[weight_T > 0, None]).sum()
        for _ in range(runs):
            (gradient,) = torch.autograd.grad(loss, x_BTD, retain_graph=runs > 1)
            found.append(gradient)
    return found


@pytest.mark.parametrize("seen", [slice(0, 5), slice(20, 25), slice(40, 45), slice(0, TIME)])
def test_gradients_of_any_part_of_the_outputs_are_those_of_the_whole(seen: slice) -> None:
    weight_T = torch.zeros(TIME, dtype=torch.float64)
    weight_T[seen] = 1.0
    pieces, whole = gradients_of(weight_T)
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-12)
    assert not pieces[:, seen.stop :].any()


def test_a_gradient_that_was_handed_out_is_not_written_again() -> None:
    weight_T = torch.rand(TIME, generator=generator(7), dtype=torch.float64)
    first, second, *_ = gradients_of(weight_T, runs=2)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_gradients_of_pieces_are_written_into_one_tensor_as_they_come() -> None:
    mixer = first_block(language_model("gla", torch.float32, depth=1)).mixer
    x_BTD = torch.randn(1, 32_768, 32, generator=generator(5)).requires_grad_()
    with Memory() as live:
        y_BTD, _ = in_pieces(mixer, x_BTD, None, NO_CONTEXT, 256)
        y_BTD.backward(torch.ones_like(y_BTD))
    assert live.peak < 4.4 * x_BTD.nbytes  # the input, the output and their gradients; the fifth would be a copy


@pytest.mark.parametrize("kind", ["gla", {"kind": "attention", "heads": 2, "window": 48}], ids=["gla", "windowed"])
def test_the_prediction_is_what_a_model_saves(kind: Any) -> None:
    def step(runner: BlockRunner | None) -> int:
        model = language_model(kind, torch.float32)
        model.block_runner = runner
        tokens_BT = torch.randint(0, 64, (4, 256), generator=generator(1))
        model(tokens_BT).hidden_BTD.sum().backward()
        with Memory() as live:
            model(tokens_BT).hidden_BTD.sum().backward()
        return live.peak

    costs = measure(language_model(kind, torch.float32), torch.zeros(4, 256, dtype=torch.int64))
    predicted = Nothing().predict(costs).bytes - Config(length=64).predict(costs).bytes
    assert predicted > 0
    assert step(None) - step(Pieces(64)) == pytest.approx(predicted, rel=0.25)
    hybrid = measure(language_model(["gla", ATTENTION]), torch.zeros(4, 256, dtype=torch.int64))
    assert [state is not None for state in hybrid.states] == [True, False]


def test_no_state_keeps_the_sequence_that_led_to_it_alive() -> None:
    for kind in RECURRENT:
        mixer = first_block(language_model(kind, depth=1)).mixer
        with torch.no_grad():
            _, state = mixer(torch.randn(1, 64, 32, dtype=torch.float64))
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in state}
        assert sum(storages.values()) <= mixer.state_bytes(64), kind


def test_attention_is_the_only_mixer_whose_state_grows() -> None:
    grows = [k for k in MIXERS.kinds() if (m := built(k)).state_bytes(64) != m.state_bytes(128)]
    assert grows == ["attention"]
    assert built(Attention(window=8)).state_bytes(64) == built(Attention(window=8)).state_bytes(128)


def test_the_state_of_windowed_attention_keeps_its_window_alone_alive() -> None:
    mixer = first_block(language_model({"kind": "attention", "heads": 2, "window": 8}, depth=1)).mixer
    with torch.no_grad():
        _, state = mixer(torch.randn(1, 64, 32, dtype=torch.float64))
    assert sum(x.untyped_storage().nbytes() for x in state) <= mixer.state_bytes(64)


def built(mixer: str | MixerConfig) -> Mixer:
    config = MIXERS.config(mixer)(kind=mixer) if isinstance(mixer, str) else mixer
    assert isinstance(config, MixerConfig)
    return config.build(96)
