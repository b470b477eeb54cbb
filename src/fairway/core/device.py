"""The machine: which device to use, how many threads, and which number formats are fast on it."""

import ctypes
import os
import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import psutil
import torch

from fairway.core.errors import ConfigError


def select(name: str) -> torch.device:
    """The device called `cpu`, `cuda`, `cuda:1` or `auto` (a GPU where there is one)."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f'There is no device "{name}"; auto, cpu or cuda would work.') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f'"{name}" was asked for, but torch {torch.__version__} sees no CUDA device; cpu would work.')
    return device


def available_threads() -> int:
    """Cores this process may really use: its affinity, cut by the container's CPU quota and by `OMP_NUM_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    wished = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, _quota() or cores, int(wished) if wished.isdecimal() else cores))


def use_threads(count: int | None = None) -> int:
    """Sets torch's threads, to all available cores if no count is given; returns the number in use."""
    torch.set_num_threads(count or available_threads())
    return torch.get_num_threads()


@cache
def fast_bfloat16(device_type: str = "cpu") -> bool:
    """Whether bfloat16 products run in hardware: AVX-512 BF16 or AMX on CPU, Ampere or newer on GPU."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory() -> int:
    """Memory that can be had without swapping, in bytes."""
    return psutil.virtual_memory().available


def _quota() -> int | None:
    """Whole cores of the cgroup's CPU quota; None where there is no limit."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            limit, period = file.read().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(1, int(limit) // int(period))


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks instead of returning them; returns whether it took effect.

    PyTorch's CPU tensors come from malloc, which by default maps and page-faults every block over 32 MB anew
    on each operation. `FAIRWAY_KEEP_FREED_MEMORY=0` switches this off.
    """
    if os.environ.get("FAIRWAY_KEEP_FREED_MEMORY") == "0" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) == 1 for option, value in _MALLOC_OPTIONS)


def route_float32_products(*, forward_only: bool = False) -> bool:
    """Sends float32 matrix products through oneDNN where MKL is slow; returns whether it took effect.

    MKL leaves AVX-512 unused on processors of AMD. From Zen 5 on that costs half of the speed; on Zen 4 it costs a
    forward pass a tenth, and training, with its transposed products, is slower through oneDNN: say `forward_only`
    where there is none. The setting of torch that chooses oneDNN also allows it to round to bfloat16, which it does on
    processors with AMX; a product is checked to keep float32's precision. Single rows are slower this way.
    `FAIRWAY_ONEDNN_FLOAT32=0` switches this off.
    """
    if os.environ.get("FAIRWAY_ONEDNN_FLOAT32") == "0" or not _mkl_is_slow(forward_only):
        return False
    before = _MATMUL.fp32_precision
    _MATMUL.fp32_precision = "bf16"
    if not _products_are_float32():
        _MATMUL.fp32_precision = before
        return False
    return True


@contextmanager
def repeatable(threads: int) -> Iterator[None]:
    """Arithmetic that another process with as many threads repeats bit for bit, whatever settings either chose."""
    before, route = torch.get_num_threads(), _MATMUL.fp32_precision
    torch.set_num_threads(threads)
    _MATMUL.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _MATMUL.fp32_precision = route


def _mkl_is_slow(forward_only: bool = False) -> bool:
    """On AMD's processors with AVX-512: of family 26 and later, and for forward passes of family 25."""
    try:
        with open("/proc/cpuinfo") as file:
            facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in file)}
    except OSError:
        return False
    family = int(facts.get("cpu family", 0)) if facts.get("vendor_id") == "AuthenticAMD" else 0
    return family >= _ZEN_5 or (forward_only and family == _ZEN_4 and "avx512f" in facts.get("flags", "").split())


def _products_are_float32() -> bool:
    """Whether a product of numbers that bfloat16 cannot tell apart keeps their difference."""
    left = torch.full((64, 64), 1.0 + 2.0**-12)
    product = left @ torch.eye(64)
    return bool(torch.equal(product, left))


_ZEN_4, _ZEN_5 = 25, 26
"""The families that these processors name; Zen 3 is of family 25 too, without AVX-512."""
_MATMUL = torch.backends.mkldnn.matmul  # pyrefly: ignore[missing-attribute]
_MALLOC_OPTIONS = ((-4, 0), (-1, 2**31 - 1), (-2, 64 * 2**20))
"""M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of glibc's malloc.h."""
