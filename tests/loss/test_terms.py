"""A teacher's term computed beside the next-token loss, from the same logits and chunk by chunk."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.seed import generator
from fairway.loss.next_token import FoldedTerm, Folding, NextTokenConfig, next_token
from fairway.loss.targets import Targets, TokenTerm
from fairway.ops.divergence.naive import forward_kl, jensen_shannon, reverse_kl


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
    terms = [lambda a, span, softcap: term.whole(a, softcap, z[span], None)]
    config = NextTokenConfig(chunk=chunk)
    seen = next_token(lambda h: h @ table.T, [table], hidden, target, config, cap, terms=terms, own=0.3)
    gradients = torch.autograd.grad(seen.loss, (hidden, table))
    assert torch.allclose(seen.loss, wanted, atol=1e-12)
    assert torch.allclose(seen.nats, functional.cross_entropy(logits, target), atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(gradients, wanted_gradients, strict=True))


class Likeliest(FoldedTerm):
    """A term of a teacher's two likeliest tokens."""

    def __init__(self, term: TokenTerm, targets: Targets) -> None:
        self.term, self.targets = term, targets

    def part(self, span: slice) -> Targets:
        assert self.targets.index_NK is not None
        return Targets(self.targets.log_p_NM[span], self.targets.index_NK[span])

    def fold(self, span: slice) -> Folding:
        part = self.part(span)
        assert part.index_NK is not None
        return Folding(part.index_NK, self.term.temperature, lambda log_s: self.term.folded(log_s, part))


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, jensen_shannon(0.3)])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_folded_term_gives_what_its_whole_slope_gives(
    divergence, cap: float | None, dtype: torch.dtype, near: float
) -> None:
    source = generator(1, "folded")
    hidden = torch.randn(13, 6, generator=source, dtype=torch.float64).to(dtype).requires_grad_()
    table = torch.nn.Parameter(torch.randn(37, 6, generator=source, dtype=torch.float64).to(dtype))
    target = torch.randint(0, 37, (13,), generator=source)
    z = torch.randn(13, 37, generator=source, dtype=torch.float64)
    term = TokenTerm(divergence, 1.5, 0.7)
    folded = Likeliest(term, Targets.of(z, 1.5, 2))
    config = NextTokenConfig(chunk=5, z_loss=0.01)

    def spread(a: Tensor, span: slice, softcap: float | None) -> tuple[Tensor, Tensor]:
        capped = a.double() if softcap is None else softcap * torch.tanh(a.double() / softcap)
        value, slope = term.value_and_slope(capped, folded.part(span))
        return value, slope if softcap is None else slope * (1 - (capped / softcap).square())

    found = []
    for each in (folded, spread):
        seen = next_token(lambda h: h @ table.T, [table], hidden, target, config, cap, terms=[each], own=0.3)
        found.append((seen.loss, seen.nats, *torch.autograd.grad(seen.loss, (hidden, table))))
    assert all(torch.allclose(a, b.to(dtype), atol=near) for a, b in zip(*found, strict=True))
