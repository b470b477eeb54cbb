"""Cross-entropy of the next token, without ever holding the logits of the whole batch.

`L = mean_t (logsumexp(l_t) - l_t[target_t]) + z * mean_t logsumexp(l_t)^2`, `l = c tanh(logits / c)` under a soft cap
c. Tokens are taken in chunks; each chunk's logits live only until they have become their own gradient. The z term keeps
the normaliser near one (Chowdhery et al. 2022, arXiv:2204.02311). Further terms of the same logits, such as a
teacher's, are added chunk by chunk. Shape key: N tokens (batch and time flattened), D width, V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Config
from fairway.loss.readout import AnyReadout, Readout, TableReadout
from fairway.ops.cross_entropy.naive import Pull
from fairway.ops.cross_entropy.native import cross_entropy_, fold
from fairway.ops.cross_entropy.table import Table

_FEW, _MANY = 1024, 2048


class NextTokenConfig(Config):
    """Settings of the loss."""

    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared log-normaliser."""
    chunk: int | None = Field(default=None, ge=1)
    """Tokens whose logits are held at once; by default 1,024 on a CPU and of a head that is one table, else 2,048."""


@dataclass(frozen=True)
class Folding:
    """A further loss at some tokens, of the probabilities that `softmax(logits / temperature)` gives to K tokens."""

    index_NK: Tensor
    temperature: float
    value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]]
    """(log-probabilities of the K tokens and, last, of all others together, (N, M)) -> (value_N, slope_NM): the slope
    by each of the K logits, and by all others moved together."""


class FoldedTerm(ABC):
    """A further loss that names K tokens and takes all others together, so that no slope of its own is ever held."""

    @abstractmethod
    def fold(self, span: slice) -> Folding:
        """The loss at the tokens `span`."""


Term = Callable[[Tensor, slice, float | None], tuple[Tensor, Tensor]] | FoldedTerm
"""A further loss of the logits z before the soft cap: (z_NV, which tokens these are, soft cap) -> (value_N, slope_NV),
the slope by z."""


@dataclass(frozen=True)
class NextToken:
    """A loss and what it is made of."""

    loss: Tensor
    """Scalar to differentiate: nats per token, plus the z term."""
    nats: Tensor
    """Mean cross-entropy in nats per token; not differentiable."""


def next_token(
    logits: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    hidden_ND: Tensor,
    target_N: Tensor,
    config: NextTokenConfig,
    softcap: float | None = None,
    weight: float | None = None,
    terms: Sequence[Term] = (),
    own: float = 1.0,
) -> NextToken:
    """Loss of `target_N` under `logits(hidden)` before the soft cap, whose trainable `parameters` are given.

    `weight` replaces 1 / N as the weight of one token, for accumulation over unequal micro-batches. `own` is
    the weight of this loss beside further `terms`, which bring their own; one of them may be folded.
    """
    each = 1.0 / target_N.numel() if weight is None else weight
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    loss, nats = _Chunked.apply(logits, config, softcap, (each, own, tuple(terms)), target_N, hidden_ND, *trained)  # pyrefly: ignore
    return NextToken(loss, nats)


class _Chunked(torch.autograd.Function):
    """Computes each chunk's gradient together with its loss; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Callable[[Tensor], Tensor],
        config: NextTokenConfig,
        softcap: float | None,
        weights: tuple[float, float, tuple[Term, ...]],
        target_N: Tensor,
        hidden_ND: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad[5:])
        each, own, terms = weights
        readout = _readout(logits, parameters, hidden_ND) if wanted else None
        chunk = config.chunk or _tokens_at_once(logits, hidden_ND)
        # What is summed stays on the device: reading it would make the processor wait at every chunk.
        further = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
        tokens: list[tuple[Tensor, Tensor]] = []
        start, lift = 0, 1.0
        for hidden, target in zip(hidden_ND.split(chunk), target_N.split(chunk), strict=True):
            logits_NV = logits(hidden).detach() if readout is None else readout.logits(hidden)
            lift = _lift(logits_NV, each)
            span = slice(start, start + len(hidden))
            value, added_NV = _further(terms, logits_NV, span, softcap)
            folded, pull = _folded(terms, logits_NV, span, softcap, each * lift)
            start, further = span.stop, further + value + folded
            nats_N, normaliser_N, slope_NV = cross_entropy_(
                logits_NV, target, softcap, config.z_loss, own * each * lift, pull
            )
            if added_NV is not None:
                slope_NV = slope_NV.add_(added_NV, alpha=each * lift)
            tokens.append((nats_N, normaliser_N))
            if readout is not None:
                readout.back(slope_NV)
        nats_N, normaliser_N = (torch.cat(parts) for parts in zip(*tokens, strict=True))
        nats, squares = nats_N.sum(dtype=torch.float64), normaliser_N.double().square_().sum()
        ctx.lift = lift
        ctx.gradients = None if readout is None else readout.gradients()
        dtype = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        mean = (nats / target_N.numel()).to(dtype)
        ctx.mark_non_differentiable(mean)
        return ((own * (nats + config.z_loss * squares) + further) * each).to(dtype), mean

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        factor = upstream[0] / ctx.lift
        if factor.device.type != "cpu" or factor != 1.0:
            gradients = [None if gradient is None else gradient.mul_(factor) for gradient in gradients]
        return (None, None, None, None, None, *gradients)


def _readout(logits: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], hidden_ND: Tensor) -> Readout:
    if isinstance(logits, Table):
        return TableReadout(logits, parameters, hidden_ND)
    return AnyReadout(logits, parameters)


def _tokens_at_once(logits: Callable[[Tensor], Tensor], hidden_ND: Tensor) -> int:
    """Enough to keep a device busy, or for the passes over each parameter's gradient, one a chunk, to cost little."""
    return _FEW if isinstance(logits, Table) and hidden_ND.device.type == "cpu" else _MANY


def _lift(logits_NV: Tensor, each: float) -> float:
    """A power of 2 that gradients by logits are multiplied by until the backward pass, which brings the loss scale.

    The share `each` of one token in a large batch would push them below the smallest float16.
    """
    return 2.0 ** round(-math.log2(each) - 4) if logits_NV.dtype == torch.float16 else 1.0


def _further(
    terms: tuple[Term, ...], z_NV: Tensor, span: slice, softcap: float | None
) -> tuple[Tensor | float, Tensor | None]:
    """The sum of the whole terms over a chunk, and its gradient by the logits before the soft cap."""
    whole = [term for term in terms if not isinstance(term, FoldedTerm)]
    if not whole:
        return 0.0, None
    found = [term(z_NV, span, softcap) for term in whole]
    slope_NV = torch.stack([slope_NV for _, slope_NV in found]).sum(0) if len(found) > 1 else found[0][1]
    return sum(value_N.sum(dtype=torch.float64) for value_N, _ in found), slope_NV


def _folded(
    terms: tuple[Term, ...], z_NV: Tensor, span: slice, softcap: float | None, weight: float
) -> tuple[Tensor | float, Pull | None]:
    """The sum of the folded term over a chunk, and what `weight` times it adds to the gradient."""
    given = [term for term in terms if isinstance(term, FoldedTerm)]
    if not given:
        return 0.0, None
    assert len(given) == 1
    folding = given[0].fold(span)
    log_p_NM, others_N = fold(z_NV, folding.index_NK, softcap, folding.temperature)
    value_N, slope_NM = folding.value_and_slope(log_p_NM)
    share_N, slope_NK = slope_NM[:, -1].contiguous(), slope_NM[:, :-1].contiguous()
    pull = Pull(folding.index_NK.contiguous(), others_N, share_N, slope_NK, folding.temperature, weight)
    return value_N.sum(dtype=torch.float64), pull
