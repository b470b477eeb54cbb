"""States of sequences that have seen different numbers of tokens, kept as ordinary tensors.

Each tensor is filled up with zeros to the largest size along each dimension, and its real sizes are kept beside it, one
row of numbers for each sequence. Shape key: B batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairway.model.parts import State


def packed(state: State) -> State:
    """A state whose rows are all full, with their sizes: (tensor, sizes, tensor, sizes, ...)."""
    return tuple(item for tensor in state for item in (tensor, _sizes(tensor)))


def _sizes(tensor: Tensor) -> Tensor:
    sizes = torch.tensor(tensor.shape[1:], dtype=torch.int64, device=tensor.device)
    return sizes.expand(tensor.shape[0], -1)


def is_even(state: State) -> bool:
    """Whether every row is full, so that the tensors can be used as they are."""
    return all(bool((sizes == _sizes(tensor)).all()) for tensor, sizes in _pairs(state))


def tensors(state: State) -> State:
    """The tensors without their sizes."""
    return state[::2]


def row(state: State, index: int) -> State:
    """The state of one sequence, without filling, as a batch of one."""
    cut = []
    for tensor, sizes in _pairs(state):
        piece = tensor[index : index + 1]
        for dimension, size in enumerate(sizes[index].tolist(), start=1):
            piece = piece.narrow(dimension, 0, size)
        cut.append(piece)
    return tuple(cut)


def stacked(rows: Sequence[State]) -> State:
    """The states of single sequences as one packed state."""
    result: list[Tensor] = []
    for column in zip(*rows, strict=True):
        largest = [max(piece.shape[d] for piece in column) for d in range(1, column[0].ndim)]
        result.append(torch.cat([_filled(piece, largest) for piece in column]))
        result.append(torch.cat([_sizes(piece) for piece in column]))
    return tuple(result)


def _filled(piece: Tensor, largest: list[int]) -> Tensor:
    for dimension, size in enumerate(largest, start=1):
        missing = size - piece.shape[dimension]
        if missing:
            shape = [*piece.shape[:dimension], missing, *piece.shape[dimension + 1 :]]
            piece = torch.cat((piece, piece.new_zeros(shape)), dim=dimension)
    return piece


def _pairs(state: State) -> list[tuple[Tensor, Tensor]]:
    return list(zip(state[::2], state[1::2], strict=True))
