"""What this machine is and what it can do: versions, devices, and ceilings of arithmetic and memory, measured.

A ceiling is the best of several runs: whatever else the machine does can only lower a rate, never raise it.
"""

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from fairway.core import device as settings
from fairway.core import native
from fairway.core.device import available_threads, fast_bfloat16, free_memory
from fairway.core.storage import free_bytes

PACKAGES = ("torch", "numpy", "pydantic", "tokenizers", "safetensors", "constriction", "cyclopts", "rich")
OPTIONAL = {
    "pyarrow": "data.source.kind=parquet",
    "datasets": "data.source.kind=hub",
    "zstandard": "reading .zst files",
    "sentencepiece": "data.source.kind=golf",
    "transformers": "comparing with and exporting to Hugging Face",
    "triton": "GPU kernels",
}


def machine() -> dict[str, Any]:
    """The facts that a reader of a result needs: processor, cores, memory, system and versions."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": available_threads(),
        "torch threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "devices": devices(),
    }


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def devices() -> list[str]:
    """Every device that torch can compute on."""
    return ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))]


def versions() -> dict[str, str]:
    """Installed versions of Fairway and of the packages it stands on."""
    return {"fairway": _version("fairway"), **{name: _version(name) for name in PACKAGES}}


def optional_packages() -> dict[str, tuple[bool, str]]:
    """For each optional package: whether it is installed, and what it is good for."""
    return {name: (importlib.util.find_spec(name) is not None, purpose) for name, purpose in OPTIONAL.items()}


def compiler() -> str | None:
    """The C++ compiler that native kernels would be built with, if there is one."""
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def gemm_ceiling(
    dtype: torch.dtype, device: torch.device | str = "cpu", *, size: int = 1024, seconds: float = 0.5
) -> float:
    """FLOP/s of the fastest product of two square matrices seen in about `seconds`; a multiply-add counts two."""
    left, right = (
        torch.ones(size, size, dtype=dtype, device=device),
        torch.ones(size, size, dtype=dtype, device=device),
    )
    result = torch.empty(size, size, dtype=dtype, device=device)
    return 2.0 * size**3 / _best(lambda: torch.mm(left, right, out=result), left, seconds)


def copy_bandwidth(device: torch.device | str = "cpu", *, size: int = 1 << 28, seconds: float = 0.5) -> float:
    """Bytes per second read and written by copying `size` bytes, far more than any cache holds."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2.0 * size / _best(lambda: target.copy_(source), source, seconds)


def diagnosis(folder: Path, *, seconds: float = 0.5) -> dict[str, Any]:
    """Everything `fairway doctor` tells; rates in FLOP/s and bytes per second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "versions": versions(),
        "machine": machine(),
        "measured": {
            "device": device,
            "fp32_flops": gemm_ceiling(torch.float32, device, seconds=seconds),
            "bf16_flops": gemm_ceiling(torch.bfloat16, device, seconds=seconds),
            "bf16_in_hardware": fast_bfloat16(device),
            "copy_bytes_per_second": copy_bandwidth(device, seconds=seconds),
        },
        "room": {"free_memory_bytes": free_memory(), "free_disk_bytes": free_bytes(folder)},
        "compiler": compiler(),
        "settings": {
            "native_kernels": native.level() or native.why_not(),
            "freed_memory_kept": settings.keep_freed_memory(),
            "float32_products_by_onednn": settings.route_float32_products(),
        },
        "optional": {name: present for name, (present, _) in optional_packages().items()},
    }


def _best(action: Callable[[], object], probe: Tensor, seconds: float) -> float:
    """Seconds of the fastest call; at least three calls after one to warm up."""
    action()
    best, spent, calls = float("inf"), 0.0, 0
    while spent < seconds or calls < 3:
        if probe.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        if probe.is_cuda:
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
