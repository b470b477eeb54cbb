"""How many bytes of tensors are alive at a time."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Memory(TorchDispatchMode):
    """Bytes of tensors alive, now and at most, that were made or returned inside; if `given`, also those read there."""

    def __init__(self, *, given: bool = False) -> None:
        super().__init__()
        self.given = given
        self.now, self.peak = 0, 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [*args, *(kwargs or {}).values()] if self.given else []
        for one in [*read, *(result if isinstance(result, (tuple, list)) else [result])]:
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in self.seen:
                storage = one.untyped_storage()
                self.seen.add(storage.data_ptr())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.data_ptr(), storage.nbytes())
        return result

    def _freed(self, address: int, size: int) -> None:
        self.seen.discard(address)
        self.now -= size
