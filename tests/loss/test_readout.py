"""Gradients through one table by its three products: those of automatic differentiation, in a tenth of the memory."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.native import level
from fairway.core.seed import generator
from fairway.loss.next_token import NextTokenConfig, next_token
from fairway.ops.cross_entropy import naive
from fairway.ops.cross_entropy.table import Table
from laws.levels import EVERY_LEVEL, at_level

TOKENS, WIDTH, VOCABULARY = 4096, 64, 2048


def problem(
    tokens: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, nn.Parameter, Tensor]:
    """Hidden vectors, a table and targets."""
    source = generator(0, "readout")
    hidden_ND = torch.randn(tokens, width, generator=source, dtype=torch.float64).to(dtype).requires_grad_()
    table_VD = torch.randn(vocabulary, width, generator=source, dtype=torch.float64) / width**0.5
    return hidden_ND, nn.Parameter(table_VD.to(dtype)), torch.randint(0, vocabulary, (tokens,), generator=source)


def defined(
    hidden_ND: Tensor, table_VD: Tensor, target_N: Tensor, cap: float | None, z_loss: float, scale: float, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients by the definition, in float64."""
    h_ND, w_VD = hidden_ND.detach().double(), table_VD.detach().double()
    nats_N, normaliser_N, slope_NV = naive.cross_entropy(scale * h_ND @ w_VD.T, target_N, cap, z_loss, weight)
    loss = weight * (nats_N + z_loss * normaliser_N.square()).sum()
    return loss, scale * slope_NV @ w_VD, scale * slope_NV.T @ h_ND


def distance(seen: Tensor, wanted: Tensor) -> float:
    return float((seen.detach().double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


@pytest.mark.parametrize("chunk", [1, 4, 13, None])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize(("scale", "z_loss"), [(1.0, 0.0), (0.7, 0.01)])
def test_a_table_gives_the_loss_and_the_gradients_of_the_definition(
    chunk: int | None, cap: float | None, scale: float, z_loss: float
) -> None:
    hidden_ND, table_VD, target_N = problem(13, 6, 11)
    wanted = defined(hidden_ND, table_VD, target_N, cap, z_loss, scale, 1 / 13)
    config = NextTokenConfig(chunk=chunk, z_loss=z_loss)
    loss = next_token(Table(table_VD, scale), [table_VD], hidden_ND, target_N, config, cap).loss
    seen = torch.autograd.grad(2.5 * loss, (hidden_ND, table_VD))
    assert distance(loss, wanted[0]) < 1e-13
    assert all(distance(a, 2.5 * b) < 1e-13 for a, b in zip(seen, wanted[1:], strict=True))


@pytest.mark.parametrize("forced", EVERY_LEVEL)
@pytest.mark.parametrize(("autocast", "error"), [(False, 1e-5), (True, 6e-3)])
@pytest.mark.parametrize(("tokens", "width", "vocabulary"), [(1, 1, 2), (37, 19, 83), (700, 48, 300)])
def test_float32_and_bfloat16_are_near_the_definition_on_every_level(
    tokens: int, width: int, vocabulary: int, autocast: bool, error: float, forced: str | None
) -> None:
    hidden_ND, table_VD, target_N = problem(tokens, width, vocabulary, torch.float32)
    wanted = defined(hidden_ND, table_VD, target_N, 15.0, 1e-4, 1.0, 1 / tokens)
    with at_level(forced), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = next_token(
            Table(table_VD), [table_VD], hidden_ND, target_N, NextTokenConfig(z_loss=1e-4, chunk=256), 15.0
        ).loss
    seen = torch.autograd.grad(loss, (hidden_ND, table_VD))
    assert [gradient.dtype for gradient in seen] == [torch.float32] * 2
    assert all(distance(a, b) < error for a, b in zip((loss, *seen), wanted, strict=True))


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_a_table_in_parts_has_the_gradient_of_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_ND, table_VD, target_N = problem(13, 6, 11)
    monkeypatch.setattr("fairway.loss.readout._BLOCK", 6 * rows)
    wanted = defined(hidden_ND, table_VD, target_N, None, 0.0, 1.0, 1 / 13)
    loss = next_token(Table(table_VD), [table_VD], hidden_ND, target_N, NextTokenConfig(chunk=4)).loss
    assert distance(torch.autograd.grad(loss, table_VD)[0], wanted[2]) < 1e-13


def test_only_what_is_trained_gets_a_gradient() -> None:
    hidden_ND, table_VD, target_N = problem(13, 6, 11)
    other = nn.Parameter(torch.ones(3))

    def gradients(parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
        loss = next_token(Table(table_VD), parameters, hidden_ND, target_N, NextTokenConfig()).loss
        return torch.autograd.grad(loss, (hidden_ND, table_VD, other), allow_unused=True)

    by_hidden, by_table, by_other = gradients([other, table_VD])
    assert by_table is not None
    assert by_other is None
    table_VD.requires_grad_(False)
    loss = next_token(Table(table_VD), [other, table_VD], hidden_ND, target_N, NextTokenConfig()).loss
    (alone,) = torch.autograd.grad(loss, hidden_ND)
    assert by_hidden is not None
    assert torch.equal(alone, by_hidden)


def test_hidden_vectors_that_are_not_contiguous_or_half_precision_keep_their_dtype() -> None:
    hidden_ND, table_VD, target_N = problem(40, 24, 31, torch.bfloat16)
    turned_ND = hidden_ND.detach().T.contiguous().T.requires_grad_()
    wanted = defined(hidden_ND, table_VD, target_N, None, 0.0, 1.0, 1 / 40)
    loss = next_token(Table(table_VD), [table_VD], turned_ND, target_N, NextTokenConfig(chunk=16)).loss
    seen = torch.autograd.grad(loss, (turned_ND, table_VD))
    assert [gradient.dtype for gradient in seen] == [torch.bfloat16] * 2
    assert all(distance(a, b) < 2e-2 for a, b in zip(seen, wanted[1:], strict=True))


def test_what_is_not_finite_reaches_the_gradients() -> None:
    hidden_ND, table_VD, target_N = problem(20, 8, 30, torch.float32)
    with torch.no_grad():
        hidden_ND[7, 3] = float("nan")
    loss = next_token(Table(table_VD), [table_VD], hidden_ND, target_N, NextTokenConfig(chunk=4)).loss
    by_hidden, by_table = torch.autograd.grad(loss, (hidden_ND, table_VD))
    assert loss.isnan()
    assert by_hidden[7].isnan().all()
    assert by_hidden[:7].isfinite().all()
    assert by_table.isnan().all()


def test_the_same_numbers_come_again_bit_for_bit() -> None:
    hidden_ND, table_VD, target_N = problem(700, 48, 300, torch.float32)

    def gradients() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token(Table(table_VD), [table_VD], hidden_ND, target_N, NextTokenConfig()).loss
        return (loss.detach(), *torch.autograd.grad(loss, (hidden_ND, table_VD)))

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))


def temporary_bytes(action: Callable[[], tuple[Tensor, ...]]) -> int:
    """Most bytes of tensors held at once, beyond what was there before and what is returned."""
    action()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        returned = action()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # pyrefly: ignore
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most - sum(tensor.numel() * tensor.element_size() for tensor in returned)


@pytest.mark.skipif(level() is None, reason="the definition, which serves here, holds copies of a chunk's logits")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_tenth_of_the_memory_of_all_logits_is_enough(autocast: bool) -> None:
    hidden_ND, table_VD, target_N = problem(TOKENS, WIDTH, VOCABULARY, torch.float32)

    def gradients(loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss()
        return torch.autograd.grad(value, (hidden_ND, table_VD))

    ours = partial(next_token, Table(table_VD), [table_VD], hidden_ND, target_N, NextTokenConfig())
    seen = temporary_bytes(lambda: gradients(lambda: ours().loss))
    all_logits = temporary_bytes(
        lambda: gradients(lambda: functional.cross_entropy(functional.linear(hidden_ND, table_VD), target_N))
    )
    assert all_logits > 2 * 4 * TOKENS * VOCABULARY
    assert seen < all_logits / 10
