"""The chunked loss against torch's cross-entropy: values, gradients, weights."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.seed import generator
from fairway.loss.next_token import NextTokenConfig, next_token


def problem() -> tuple[Tensor, nn.Parameter, Tensor]:
    """Hidden vectors (13, 6), a table (11, 6), targets (13,)."""
    source = generator(0, "loss")
    hidden = torch.randn(13, 6, generator=source, dtype=torch.float64, requires_grad=True)
    table = nn.Parameter(torch.randn(11, 6, generator=source, dtype=torch.float64))
    return hidden, table, torch.randint(0, 11, (13,), generator=source)


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_any_chunk_gives_the_loss_and_gradients_of_the_whole(chunk: int, cap: float | None, z_loss: float) -> None:
    hidden, table, target = problem()
    logits = hidden @ table.T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    wanted = functional.cross_entropy(logits, target) + z_loss * logits.logsumexp(-1).square().mean()
    wanted_gradients = torch.autograd.grad(2.5 * wanted, (hidden, table))
    config = NextTokenConfig(chunk=chunk, z_loss=z_loss)
    seen = next_token(lambda h: h @ table.T, [table], hidden, target, config, cap)
    gradients = torch.autograd.grad(2.5 * seen.loss, (hidden, table))
    assert torch.allclose(seen.loss, wanted, atol=1e-12)
    assert torch.allclose(seen.nats, functional.cross_entropy(logits, target), atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(gradients, wanted_gradients, strict=True))


def test_unequal_micro_batches_add_up_to_the_whole_batch() -> None:
    hidden, table, target = problem()
    whole = next_token(lambda h: h @ table.T, [table], hidden, target, NextTokenConfig())
    parts = [
        next_token(lambda h: h @ table.T, [table], hidden[span], target[span], NextTokenConfig(), weight=1 / 13)
        for span in (slice(0, 5), slice(5, 6), slice(6, 13))
    ]
    assert torch.allclose(torch.stack([part.loss for part in parts]).sum(), whole.loss, atol=1e-12)


def test_a_table_that_is_not_trained_gets_no_gradient_and_changes_nothing() -> None:
    hidden, table, target = problem()
    (wanted,) = torch.autograd.grad(
        next_token(lambda h: h @ table.T, [table], hidden, target, NextTokenConfig()).loss, hidden
    )
    table.requires_grad_(False)
    (seen,) = torch.autograd.grad(
        next_token(lambda h: h @ table.T, [table], hidden, target, NextTokenConfig()).loss, hidden
    )
    assert torch.equal(seen, wanted)


def test_gradients_in_float16_keep_what_a_large_batch_makes_small() -> None:
    source = generator(0, "float16")
    hidden = torch.randn(256, 32, generator=source, requires_grad=True)
    table = nn.Parameter(0.3 * torch.randn(300, 32, generator=source))
    target, config = torch.randint(0, 300, (256,), generator=source), NextTokenConfig(chunk=64)

    def gradients() -> tuple[Tensor, ...]:
        loss = next_token(lambda h: functional.linear(h, table), [table], hidden, target, config, weight=2**-20).loss
        return torch.autograd.grad(65_536 * loss, (hidden, table))

    exact = gradients()
    with torch.autocast("cpu", torch.float16):
        seen = gradients()
    assert all((a - b).norm() < 0.005 * b.norm() for a, b in zip(seen, exact, strict=True))


def test_without_gradients_nothing_is_kept() -> None:
    hidden, table, target = problem()
    with torch.no_grad():
        seen = next_token(lambda h: h @ table.T, [table], hidden, target, NextTokenConfig())
    assert not seen.loss.requires_grad
