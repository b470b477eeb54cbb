"""A pytest plugin that keeps calls of the portable kernels, so that another machine can make the same calls.

`-p laws.kernel_calls` with `FAIRWAY_KERNEL_CALLS=FILE`: the first small calls of every kernel whose pointers all lead
into tensors or arrays. A call is its name, its buffers before and after, and its arguments: numbers, or a buffer and
how many bytes further. `read` gives names and buffers back; `tests/ops/replay.cpp` reads the same file.
"""

import ctypes
import gc
import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fairway.core import native

CALLS, TRIES, LARGEST = 4, 64, 1 << 16
SUFFIX = "_portable"
NESTED = ("decode_step", "sparse_matvec")
"""Kernels that find further addresses where their arguments point."""
INTEGER, REAL, POINTER = range(3)
DTYPES = (torch.uint8, torch.bool, torch.int32, torch.int64, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Buffer:
    """What one storage held."""

    before: Tensor
    after: Tensor


class Recorder:
    """The library, with the kernels that are not yet kept often enough wrapped."""

    def __init__(self, library: ctypes.CDLL, path: Path) -> None:
        self.library, self.path = library, path
        self.kept: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.library, name)
        return _Wrapped(self, name, function) if name.endswith(SUFFIX) else function

    def wants(self, name: str) -> bool:
        self.tried[name] += 1
        nested = name.removesuffix(SUFFIX) in NESTED
        return not nested and self.kept[name] < CALLS and self.tried[name] <= TRIES

    def keep(self, name: str, arguments: Sequence[bytes], buffers: Sequence[Tensor], before: Sequence[bytes]) -> None:
        self.kept[name] += 1
        with self.path.open("ab") as file:
            file.write(_block(name.encode()) + _word(len(buffers)))
            for buffer, old in zip(buffers, before, strict=True):
                file.write(_word(DTYPES.index(buffer.dtype)) + _block(old) + _block(_bytes(buffer)))
            file.write(_word(len(arguments)) + b"".join(arguments))


class _Wrapped:
    def __init__(self, recorder: Recorder, name: str, function: Any) -> None:
        self.recorder, self.name, self.function = recorder, name, function
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> None:
        self.function.restype = self.restype
        found = _followed(arguments) if self.recorder.wants(self.name) else None
        if found is None:
            self.function(*arguments)
            return
        encoded, buffers = found
        before = [_bytes(buffer) for buffer in buffers]
        self.function(*arguments)
        self.recorder.keep(self.name, encoded, buffers, before)


def _followed(arguments: Sequence[Any]) -> tuple[list[bytes], list[Tensor]] | None:
    """The arguments as they are kept, and the buffers they point into; None where one leads nowhere known."""
    storages = _storages({one.value for one in arguments if isinstance(one, ctypes.c_void_p) and one.value})
    encoded: list[bytes] = []
    buffers: dict[int, Tensor] = {}
    for one in arguments:
        if isinstance(one, (ctypes.c_float, ctypes.c_double)):
            encoded.append(_word(REAL) + bytes(one).ljust(8, b"\0"))
        elif isinstance(one, (ctypes.c_int, ctypes.c_long)) or (isinstance(one, ctypes.c_void_p) and not one.value):
            encoded.append(_word(INTEGER) + _word(one.value or 0))
        elif isinstance(one, ctypes.Array):
            encoded.append(_word(POINTER) + _word(len(buffers)) + _word(0))
            buffers[ctypes.addressof(one)] = _numbers(bytes(one), torch.uint8)
        elif isinstance(one, ctypes.c_void_p) and one.value in storages:
            whole = storages[one.value]
            buffers.setdefault(whole.data_ptr(), whole)
            place = list(buffers).index(whole.data_ptr())
            encoded.append(_word(POINTER) + _word(place) + _word(one.value - whole.data_ptr()))
        else:
            return None
    return (encoded, list(buffers.values())) if sum(one.nbytes for one in buffers.values()) <= LARGEST else None


def _storages(addresses: set[int]) -> dict[int, Tensor]:
    """All numbers of the storage into which each address leads."""
    found = {}
    for one in gc.get_objects():
        if type(one) in (Tensor, torch.nn.Parameter) and one.device.type == "cpu" and one.layout == torch.strided:
            storage = one.untyped_storage()
            start, size = storage.data_ptr(), storage.nbytes()
            for address in addresses if one.dtype in DTYPES else ():
                if start <= address < start + size:
                    found[address] = one.detach().as_strided((size // one.element_size(),), (1,), 0)
    return found


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _numbers(content: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _word(value: int) -> bytes:
    return struct.pack("<q", value)


def _block(content: bytes) -> bytes:
    return _word(len(content)) + content


def pytest_configure(config: pytest.Config) -> None:
    path = Path(os.environ["FAIRWAY_KERNEL_CALLS"])
    path.write_bytes(b"")
    recorder = Recorder(native._library(), path)
    patch = pytest.MonkeyPatch()
    patch.setattr(native, "_library", lambda: recorder)
    config.add_cleanup(patch.undo)
    native.kernel.cache_clear()


def read(path: Path) -> Iterator[tuple[str, list[Buffer]]]:
    """The kept calls: a kernel's name, and its buffers."""
    content = path.read_bytes()
    place = 0

    def word() -> int:
        nonlocal place
        place += 8
        return struct.unpack_from("<q", content, place - 8)[0]

    def block() -> bytes:
        nonlocal place
        size = word()
        place += size
        return content[place - size : place]

    while place < len(content):
        name, buffers = block().decode(), []
        for _ in range(word()):
            dtype = DTYPES[word()]
            buffers.append(Buffer(_numbers(block(), dtype), _numbers(block(), dtype)))
        for _ in range(word()):
            kind = word()
            place += 16 if kind == POINTER else 8
        yield name, buffers


def results(calls: Sequence[tuple[str, list[Buffer]]], content: bytes) -> Iterator[list[Tensor]]:
    """What `replay.cpp` wrote: the buffers of every call."""
    place = 0
    for _, buffers in calls:
        found = []
        for buffer in buffers:
            size = buffer.after.nbytes
            found.append(_numbers(content[place : place + size], buffer.after.dtype))
            place += size
        yield found
    assert place == len(content)
