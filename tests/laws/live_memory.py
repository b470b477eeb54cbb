"""How many bytes of tensors are alive at a time."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Memory(TorchDispatchMode):
    """Bytes of tensors alive that were made or returned inside, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage.data_ptr())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.data_ptr(), storage.nbytes())
        return result

    def _freed(self, address: int, size: int) -> None:
        self.seen.discard(address)
        self.now -= size
