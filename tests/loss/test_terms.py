"""A teacher's term computed beside the next-token loss, from the same logits and chunk by chunk."""

import pytest
import torch
from torch.nn import functional

from fairway.core.seed import generator
from fairway.loss.divergence import forward_kl
from fairway.loss.next_token import NextTokenConfig, next_token
from fairway.loss.targets import Targets, TokenTerm


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_both_losses_together_have_the_gradient_of_their_sum(chunk: int, cap: float | None) -> None:
    source = generator(0, "terms")
    hidden = torch.randn(13, 6, generator=source, dtype=torch.float64, requires_grad=True)
    table = torch.nn.Parameter(torch.randn(11, 6, generator=source, dtype=torch.float64))
    target = torch.randint(0, 11, (13,), generator=source)
    z = torch.randn(13, 11, generator=source, dtype=torch.float64)
    logits = hidden @ table.T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    softened = functional.kl_div((logits / 2).log_softmax(-1), (z / 2).softmax(-1), reduction="batchmean")
    wanted = 0.3 * functional.cross_entropy(logits, target) + 0.7 * 4 * softened
    wanted_gradients = torch.autograd.grad(wanted, (hidden, table))
    term = TokenTerm(forward_kl, 2.0, 0.7)
    terms = [lambda a, span: term.value_and_slope(a, Targets.of(z[span], 2.0))]
    config = NextTokenConfig(chunk=chunk)
    seen = next_token(lambda h: h @ table.T, [table], hidden, target, config, cap, terms=terms, own=0.3)
    gradients = torch.autograd.grad(seen.loss, (hidden, table))
    assert torch.allclose(seen.loss, wanted, atol=1e-12)
    assert torch.allclose(seen.nats, functional.cross_entropy(logits, target), atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(gradients, wanted_gradients, strict=True))
