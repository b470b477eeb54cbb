"""Cutting a sequence into chunks, and the decays between the places of a chunk.

Within a chunk, `G_i = g_1 + ... + g_i` is the cumulative log decay. Only differences `G_i - G_j` with i >= j
are ever exponentiated, so every factor lies in [0, 1] and nothing can overflow.
Shape key: B batch, T time, H heads, N chunks, C places of a chunk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def chunk_size(length: int, chunk: int) -> int:
    """`chunk`, halved while a chunk of half the size still holds the whole sequence."""
    assert chunk >= 1
    while chunk % 2 == 0 and chunk // 2 >= max(1, length):
        chunk //= 2
    return chunk


def to_chunks(x: Tensor, size: int) -> Tensor:
    """(B, T, H, ...) as (N, B, H, C, ...), filled up with zeros."""
    missing = -x.shape[1] % size
    if missing:
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], 1)
    x = x.unflatten(1, (x.shape[1] // size, size))
    return x.permute(1, 0, 3, 2, *range(4, x.ndim)).contiguous()


def from_chunks(x: Tensor, length: int) -> Tensor:
    """(N, B, H, C, ...) as (B, T, H, ...), without what was filled up."""
    return x.permute(1, 0, 3, 2, *range(4, x.ndim)).flatten(1, 2)[:, :length]


@dataclass(frozen=True)
class Visibility:
    """What the places of a chunk may see of each other and of the carried state."""

    pair_NBHCC: Tensor
    """True where place i (second to last dimension) sees place j: j <= i, same document."""
    entering_NBHC: Tensor | None
    """True where no document has begun since the chunk's start; None: everywhere."""
    leaving_NBHC: Tensor | None
    """True where no document begins between the place and the chunk's end; None: everywhere."""


def visibility(starts_BT: Tensor | None, size: int, device: torch.device) -> Visibility:
    """Visibility of every chunk; dimensions that do not matter have size 1."""
    causal_CC = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    if starts_BT is None:
        return Visibility(causal_CC.view(1, 1, 1, size, size), None, None)
    document_NBHC = to_chunks(starts_BT.unsqueeze(2), size).cumsum(-1)
    same_NBHCC = document_NBHC.unsqueeze(-1) == document_NBHC.unsqueeze(-2)
    return Visibility(causal_CC & same_NBHCC, document_NBHC == 0, document_NBHC == document_NBHC[..., -1:])


@dataclass(frozen=True)
class Decays:
    """Decays between two places, from the chunk's start to a place, from a place to its end, through it."""

    pair_NBHCC: Tensor
    entering_NBHC: Tensor
    leaving_NBHC: Tensor
    whole_NBH: Tensor


def scalar_decays(log_decay_BTH: Tensor, starts_BT: Tensor | None, size: int) -> Decays:
    """Decays of one number per head and step; the batch and the heads of `log_decay_BTH` may have size 1.

    The decay of a step acts before its write: `pair` is 1 on the diagonal, `entering` includes the own step.
    """
    see = visibility(starts_BT, size, log_decay_BTH.device)
    total_NBHC = to_chunks(log_decay_BTH, size).cumsum(-1)
    difference_NBHCC = total_NBHC.unsqueeze(-1) - total_NBHC.unsqueeze(-2)
    pair_NBHCC = difference_NBHCC.masked_fill(~see.pair_NBHCC, float("-inf")).exp()
    entering_NBHC = masked(total_NBHC.exp(), see.entering_NBHC)
    leaving_NBHC = masked((total_NBHC[..., -1:] - total_NBHC).exp(), see.leaving_NBHC)
    return Decays(pair_NBHCC, entering_NBHC, leaving_NBHC, entering_NBHC[..., -1])


def masked(x: Tensor, keep: Tensor | None) -> Tensor:
    """`x` with zeros where `keep` is False; all of it where there is no mask."""
    return x if keep is None else x * keep


def chunked_flops(context: int, chunk: int, key_width: int, value_width: int) -> float:
    """FLOPs per token and head of a chunked recurrence: the visible pairs of a chunk, one write, one read."""
    seen = (chunk_size(context, chunk) + 1) / 2
    return 2.0 * seen * (key_width + value_width) + 4.0 * key_width * value_width
