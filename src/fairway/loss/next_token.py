"""Cross-entropy of the next token, without ever holding the logits of the whole batch.

`L = mean_t (logsumexp(l_t) - l_t[target_t]) + z * mean_t logsumexp(l_t)^2`, `l = c tanh(logits / c)` under a soft cap
c. Tokens are taken in chunks; each chunk's logits live only until they have become their own gradient. The z term keeps
the normaliser near one (Chowdhery et al. 2022, arXiv:2204.02311). Further terms of the same logits, such as a
teacher's, are added chunk by chunk. Shape key: N tokens (batch and time flattened), D width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Config
from fairway.ops.cross_entropy.native import cross_entropy_


class NextTokenConfig(Config):
    """Settings of the loss."""

    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared log-normaliser."""
    chunk: int = Field(default=2048, ge=1)
    """Tokens whose logits are held at once."""


Term = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""A further loss of the logits after the soft cap: (logits_NV, which tokens these are) -> (value_N, slope_NV)."""


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
    the weight of this loss beside further `terms`, which bring their own.
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
        # Sums stay on the device: reading one would make the processor wait for it at every chunk.
        nats = squares = further = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
        start, lift = 0, 1.0
        hidden_gradients: list[Tensor] = []
        gradients: list[Tensor | None] = [None] * len(parameters)
        for hidden, target in zip(hidden_ND.split(config.chunk), target_N.split(config.chunk), strict=True):
            with torch.set_grad_enabled(wanted):
                hidden = hidden.detach().requires_grad_(wanted)
                logits_NV = logits(hidden)
            lift = _lift(logits_NV, each)
            value, added_NV = _further(terms, logits_NV.detach(), slice(start, start + len(hidden)), softcap)
            start, further = start + len(hidden), further + value
            nats_N, normaliser_N, slope_NV = cross_entropy_(
                logits_NV.detach(), target, softcap, config.z_loss, own * each * lift
            )
            if added_NV is not None:
                slope_NV = slope_NV.add_(added_NV, alpha=each * lift)
            nats = nats + nats_N.sum(dtype=torch.float64)
            squares = squares + normaliser_N.square().sum(dtype=torch.float64)
            if wanted:
                first, *rest = torch.autograd.grad(logits_NV, [hidden, *parameters], slope_NV, allow_unused=True)
                hidden_gradients.append(hidden.new_zeros(hidden.shape) if first is None else first)
                gradients = [_sum(old, new) for old, new in zip(gradients, rest, strict=True)]
        ctx.lift = lift
        ctx.gradients = (torch.cat(hidden_gradients), *gradients) if wanted else None
        dtype = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        mean = (nats / target_N.numel()).to(dtype)
        ctx.mark_non_differentiable(mean)
        return ((own * (nats + config.z_loss * squares) + further) * each).to(dtype), mean

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if gradient is None else gradient * (upstream[0] / ctx.lift) for gradient in ctx.gradients]
        ctx.gradients = None
        return (None, None, None, None, None, *scaled)


def _lift(logits_NV: Tensor, each: float) -> float:
    """A power of 2 that gradients by logits are multiplied by until the backward pass, which brings the loss scale.

    The share `each` of one token in a large batch would push them below the smallest float16.
    """
    return 2.0 ** round(-math.log2(each) - 4) if logits_NV.dtype == torch.float16 else 1.0


def _further(
    terms: tuple[Term, ...], z_NV: Tensor, span: slice, softcap: float | None
) -> tuple[Tensor | float, Tensor | None]:
    """The sum of the terms over a chunk, and its gradient by the logits before the soft cap."""
    if not terms:
        return 0.0, None
    wide_NV = z_NV if z_NV.dtype == torch.float64 else z_NV.float()
    capped_NV = wide_NV if softcap is None else (wide_NV / softcap).tanh_().mul_(softcap)
    found = [term(capped_NV, span) for term in terms]
    slope_NV = torch.stack([slope_NV for _, slope_NV in found]).sum(0) if len(found) > 1 else found[0][1]
    value = sum(value_N.sum(dtype=torch.float64) for value_N, _ in found)
    if softcap is None:
        return value, slope_NV
    return value, slope_NV.mul_((capped_NV / softcap).square_().neg_().add_(1))


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old.add_(new)
