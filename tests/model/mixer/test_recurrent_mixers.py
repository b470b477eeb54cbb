"""What every mixer with a recurrent state promises, tried on each kind and against planted faults."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fairway.core.config import Slot
from fairway.core.seed import generator
from fairway.model.parts import NO_CONTEXT, Context, Mixer, Role, Site, State, initialise, parameter_roles

KINDS = ["mamba", "mamba2", "retnet", "rwkv4", "gla", "linear_attention", "delta", "gated_delta"]
KINDS += ["ttt_linear", "ttt_mlp"]
MIXER = Slot("fairway.model.mixer", "attention")
WIDTH, TIME = 16, 37
SPLITS = [[1] * TIME, [16, 21], [5, 0, 11, 20, 1], [TIME, 0]]


def config_of(kind: str, **settings: object) -> Any:
    return MIXER.config(kind).read({"kind": kind, **settings})


def built(kind: str, **settings: object) -> Mixer:
    """A mixer in float64 with every parameter moved from its initial value, so that no output is zero."""
    mixer = config_of(kind, **settings).build(WIDTH, Site(1, 4)).double()
    initialise(mixer, 0)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator(1, name), dtype=torch.float64)
    return mixer


def inputs(batch: int = 2, time: int = TIME) -> Tensor:
    return torch.randn(batch, time, WIDTH, generator=generator(0, "inputs"), dtype=torch.float64)


def starts(mixer_kind: str) -> Tensor | None:
    if not config_of(mixer_kind).isolates_documents():
        return None
    return torch.rand(2, TIME, generator=generator(0, "starts")) < 0.15


def in_pieces(mixer: Mixer, x: Tensor, sizes: list[int], begin: Tensor | None) -> tuple[Tensor, State]:
    """Outputs and final state of a sequence handed over in pieces."""
    state, outputs, at = mixer.empty_state(len(x)), [], 0
    for size in sizes:
        context = Context(starts_BT=None if begin is None else begin[:, at : at + size])
        output, state = mixer(x[:, at : at + size], state, context)
        outputs.append(output)
        at += size
    return torch.cat(outputs, 1), state


def close(first: Tensor, second: Tensor, tolerance: float = 1e-9) -> None:
    assert first.shape == second.shape
    scale = max(1.0, float(second.detach().abs().max())) if second.numel() else 1.0
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance * scale)


def check_law(mixer: Mixer, begin: Tensor | None, splits: list[list[int]] = SPLITS) -> None:
    """Any split with carried state gives the outputs, final state and gradients of the whole."""
    x = inputs().requires_grad_()
    parameters = list(mixer.parameters())
    weight = torch.randn(x.shape, generator=generator(0, "weight"), dtype=x.dtype)
    whole, final = mixer(x, None, Context(starts_BT=begin))
    assert whole.abs().max() > 1e-3
    gradients = torch.autograd.grad((whole * weight).sum(), [x, *parameters])
    for sizes in splits:
        output, state = in_pieces(mixer, x, sizes, begin)
        close(output, whole)
        for one, other in zip(state, final, strict=True):
            close(one, other)
        for one, other in zip(torch.autograd.grad((output * weight).sum(), [x, *parameters]), gradients, strict=True):
            close(one, other)


def check_causality(mixer: Mixer) -> None:
    """What comes at place 20 changes nothing before it, and something from there on."""
    x = inputs()
    changed = x.clone()
    changed[:, 20] += 1.0
    before, after = mixer(x)[0], mixer(changed)[0]
    assert torch.equal(before[:, :20], after[:, :20])
    assert (before[:, 20] - after[:, 20]).abs().max() > 1e-6
    assert (before[:, 21:] - after[:, 21:]).abs().amax((0, 2)).gt(0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_gives_the_same_outputs_states_and_gradients(kind: str) -> None:
    check_law(built(kind), None)
    if starts(kind) is not None:
        check_law(built(kind), starts(kind), SPLITS[:2])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mamba", {"discretisation": "zoh", "taps": 1, "rank": 3}),
        ("mamba2", {"groups": 2, "heads": 4, "taps": 2}),
        ("linear_attention", {"feature_map": "square", "heads": 2}),
        ("linear_attention", {"feature_map": "identity", "normalise": False}),
        ("ttt_linear", {"gate": True, "mini_batch": 1}),
        ("ttt_mlp", {"gate": True, "mini_batch": 7, "heads": 2}),
    ],
)
def test_the_law_holds_for_other_settings(kind: str, settings: dict[str, object]) -> None:
    check_law(built(kind, **settings), None, SPLITS[1:3])


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_cannot_leak_into_the_past(kind: str) -> None:
    check_causality(built(kind))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if config_of(kind).isolates_documents()])
def test_a_document_is_seen_as_if_it_stood_alone(kind: str) -> None:
    mixer, x = built(kind), inputs()
    begin = torch.zeros(2, TIME, dtype=torch.bool)
    begin[:, 15] = True
    joint, joint_state = mixer(x, None, Context(starts_BT=begin))
    alone, alone_state = mixer(x[:, 15:])
    close(joint[:, 15:], alone)
    for one, other in zip(joint_state, alone_state, strict=True):
        close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_state_bytes_are_those_of_the_state(kind: str) -> None:
    mixer = config_of(kind).build(WIDTH)
    initialise(mixer, 0)
    for time in (3, 20):
        _, state = mixer(inputs(1, time).float())
        assert mixer.state_bytes(time) == sum(tensor.nbytes for tensor in state)
        for one, other in zip(state, mixer.empty_state(1), strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_the_state_stays_in_float32(kind: str) -> None:
    mixer = built(kind).float()
    x = inputs()
    exact, _ = mixer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        output, state = mixer(x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in state if tensor.is_floating_point()} == {torch.float32}
    error = (output.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_role_a_start_and_a_gradient(kind: str) -> None:
    mixer = config_of(kind).build(WIDTH, Site(1, 4))
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.fill_(math.nan)
    initialise(mixer, 0)
    assert all(torch.isfinite(parameter).all() for parameter in mixer.parameters())
    mixer = built(kind)
    assert set(parameter_roles(mixer)) == {name for name, _ in mixer.named_parameters()}
    output, _ = mixer(inputs())
    output.square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("mamba", {"A_log_EN", "step_bias_E"}),
        ("mamba2", {"A_log_H", "step_bias_H"}),
        ("rwkv4", {"w_raw_D"}),
        ("gla", {"decay_bias_X"}),
        ("gated_delta", {"A_log_H", "step_bias_H"}),
    ],
)
def test_what_sets_a_decay_has_the_role_decay(kind: str, names: set[str]) -> None:
    roles = parameter_roles(config_of(kind).build(WIDTH))
    assert {name for name, role in roles.items() if role is Role.DECAY} == names


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_may_stand_at_different_places(kind: str) -> None:
    mixer, x = built(kind), inputs(2, 12)
    states = [mixer(row[:, :seen])[1] for row, seen in ((x[:1], 3), (x[1:], 10))]
    together = tuple(torch.cat(parts) for parts in zip(*states, strict=True))
    fresh = inputs(2, 20)
    output, after = mixer(fresh, together)
    for row, state in enumerate(states):
        alone, alone_state = mixer(fresh[row : row + 1], state)
        close(output[row : row + 1], alone)
        for one, other in zip(after, alone_state, strict=True):
            close(one[row : row + 1], other)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mamba", "rwkv4")])
def test_heads_that_do_not_fit_are_refused_by_number(kind: str) -> None:
    with pytest.raises(ValueError, match="7 heads"):
        config_of(kind, heads=7).build(WIDTH)


Fault = Callable[[Mixer], Callable[..., tuple[Tensor, State]]]


def _future_leak(mixer: Mixer) -> Callable[..., tuple[Tensor, State]]:
    forward = mixer.forward
    return lambda x, state=None, context=NO_CONTEXT: forward(x + 0.1 * x.roll(-1, 1), state, context)


def _forgotten_first_state(mixer: Mixer) -> Callable[..., tuple[Tensor, State]]:
    forward = mixer.forward

    def faulty(x: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        kept = None if state is None else (torch.zeros_like(state[0]), *state[1:])
        return forward(x, kept, context)

    return faulty


def _state_in_half_precision(mixer: Mixer) -> Callable[..., tuple[Tensor, State]]:
    forward = mixer.forward

    def faulty(x: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        y, after = forward(x, state, context)
        return y, tuple(s.bfloat16().to(s.dtype) if s.is_floating_point() else s for s in after)

    return faulty


def _dropped_remainder(mixer: Mixer) -> Callable[..., tuple[Tensor, State]]:
    forward = mixer.forward

    def faulty(x: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        y, after = forward(x, state, context)
        whole = x.shape[1] - x.shape[1] % 4
        return y, forward(x[:, :whole], state, context)[1] if whole else after

    return faulty


@pytest.mark.parametrize("kind", KINDS)
def test_the_checks_notice_planted_faults(kind: str) -> None:
    for fault in (_forgotten_first_state, _state_in_half_precision, _dropped_remainder):
        mixer = built(kind)
        mixer.forward = fault(mixer)  # pyrefly: ignore[bad-assignment]
        with pytest.raises(AssertionError):
            check_law(mixer, None, SPLITS[2:3])
    mixer = built(kind)
    mixer.forward = _future_leak(mixer)  # pyrefly: ignore[bad-assignment]
    with pytest.raises(AssertionError):
        check_causality(mixer)
