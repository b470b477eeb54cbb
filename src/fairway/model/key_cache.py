"""Keys and values that grow by one token at a time without copying those before.

Where no gradient is wanted, the tensor that `appended` returns is a view of a buffer with room behind it. The next
token is written there, if nothing was written behind this view yet: of two continuations of one state the first
writes, the second copies. A view whose front has been dropped, as a window does, goes on in the same buffer, which is
copied once in as many tokens as the window holds. Shape key: B batch, G key groups, S keys, K head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

PAGE = 64
"""Keys of room that a buffer has at least when it is made."""


@dataclass
class _Buffer:
    keys_BGSK: Tensor
    taken: int
    """Keys up to which it is written."""


@dataclass(frozen=True)
class _Place:
    buffer: _Buffer
    end: int


_places = WeakTensorKeyDictionary()
"""Where the tensors that came from here lie."""


def appended(old_BGSK: Tensor, new_BGSK: Tensor) -> Tensor:
    """Old keys and then new ones, in the precision of the new."""
    held = old_BGSK.shape[2]
    if not held:
        return new_BGSK
    if torch.is_grad_enabled() or new_BGSK.shape[2] != 1 or old_BGSK.dtype != new_BGSK.dtype:
        return torch.cat((old_BGSK.to(new_BGSK.dtype), new_BGSK), dim=2)
    place = _places.get(old_BGSK)
    if place is None or place.end != place.buffer.taken or place.end == place.buffer.keys_BGSK.shape[2]:
        place = _moved(old_BGSK)
    buffer, end = place.buffer, place.end + 1
    buffer.keys_BGSK[:, :, end - 1 : end] = new_BGSK
    buffer.taken = end
    return _view(buffer, end, held + 1)


def newest(keys_BGSK: Tensor, count: int) -> Tensor:
    """The last `count` keys, as a view that `appended` can go on from."""
    held = keys_BGSK.shape[2]
    if count >= held:
        return keys_BGSK
    place = _places.get(keys_BGSK)
    return keys_BGSK[:, :, held - count :] if place is None else _view(place.buffer, place.end, count)


def _moved(old_BGSK: Tensor) -> _Place:
    batch, groups, held, width = old_BGSK.shape
    buffer_BGSK = old_BGSK.new_empty(batch, groups, held + max(PAGE, held), width)
    buffer_BGSK[:, :, :held] = old_BGSK
    return _Place(_Buffer(buffer_BGSK, held), held)


def _view(buffer: _Buffer, end: int, held: int) -> Tensor:
    view_BGSK = buffer.keys_BGSK[:, :, end - held : end]
    _places[view_BGSK] = _Place(buffer, end)
    return view_BGSK
