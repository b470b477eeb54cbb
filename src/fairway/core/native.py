"""The native kernels: one shared library, loaded once, with a variant of every kernel for each instruction level.

Without the library (no compiler when the package was installed, or `FAIRWAY_NATIVE=0`) every op has its PyTorch path.
`FAIRWAY_LEVEL=portable|avx2|avx512|avx512bf16|amx` forces a lower level than the machine's.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fairway
from fairway.core.errors import ConfigError

LEVELS = ("portable", "avx2", "avx512", "avx512bf16", "amx")


@cache
def level() -> str | None:
    """The instruction level in use; None where the kernels are switched off or were not built."""
    if os.environ.get("FAIRWAY_NATIVE") == "0" or _library_path() is None:
        return None
    best = _machine_level()
    wanted = os.environ.get("FAIRWAY_LEVEL", best)
    if wanted not in LEVELS[: LEVELS.index(best) + 1]:
        able = ", ".join(LEVELS[: LEVELS.index(best) + 1])
        raise ConfigError(f"FAIRWAY_LEVEL is {wanted!r}; this machine can run {able}.")
    return wanted


def why_not() -> str:
    """Why the kernels are not in use, for `fairway doctor`; empty where they are."""
    if os.environ.get("FAIRWAY_NATIVE") == "0":
        return "switched off by FAIRWAY_NATIVE=0"
    return "" if _library_path() else "not built: there was no C++ compiler when the package was installed"


def usable(*tensors: Tensor | None) -> bool:
    """Whether kernels may take these tensors: on the CPU, all bfloat16 or all float32."""
    given = [tensor for tensor in tensors if tensor is not None]
    dtypes = {tensor.dtype for tensor in given}
    return (
        all(tensor.device.type == "cpu" for tensor in given)
        and len(dtypes) == 1
        and dtypes <= {torch.float32, torch.bfloat16}
        and level() is not None
    )


@cache
def kernel(name: str) -> Callable[..., None]:
    """One kernel at the level in use. Arguments are ctypes values, and tensors through `pointer`."""
    try:
        function = getattr(_library(), f"{name}_{level()}")
    except AttributeError:
        raise ConfigError(
            f"The native kernels were built from older sources: they lack {name}. Installing the package again would "
            "work, and so would FAIRWAY_NATIVE=0."
        ) from None
    function.restype = None
    return function


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """The address of a tensor's first element; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def longs(*values: int) -> Any:
    """An array of C longs."""
    return (ctypes.c_long * len(values))(*values)


def floats(*values: float) -> Any:
    """An array of C floats."""
    return (ctypes.c_float * len(values))(*values)


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(_library_path()))


@cache
def _library_path() -> Path | None:
    """An editable install keeps what it built apart from the sources; every folder of the package is looked at."""
    places = [Path(folder) / "ops" / "kernel" / "libfairway.so" for folder in fairway.__path__]
    return next((path for path in places if path.exists()), None)


def _machine_level() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and torch.cpu._is_avx512_bf16_supported():
        return "amx" if torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx() else "avx512bf16"
    if capability == "AVX512":
        return "avx512"
    return "avx2" if capability == "AVX2" else "portable"
