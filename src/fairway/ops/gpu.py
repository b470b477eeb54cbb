"""Where an op has kernels for GPUs: `ops/<op>/triton.py`, imported by name and only where a device can run them.

Triton is optional (`pip install fairway[gpu]`), so the files that import it are themselves imported only on a machine
with a CUDA device, or where `TRITON_INTERPRET=1` asks for Triton's interpreter on the CPU. `FAIRWAY_TRITON=0` leaves
them out. This is decided once, when an op is imported: elsewhere the op is the very function it was, and a compiler
sees a constant.
"""

import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from fairway.core.log import say_once

P = ParamSpec("P")
R = TypeVar("R")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def on_gpu(op: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Wraps an op's fastest form: tensors on a GPU go to the function of the same name in `ops/<op>/triton.py`.

    That function takes the same arguments but for those that concern other forms, such as a chunk size.
    """
    kernels = _kernels(op)

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        if kernels is None:
            return function
        kernel = getattr(kernels, op)
        names = tuple(inspect.signature(kernel).parameters)
        widest = getattr(kernels, "WIDEST_KEY", None)

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            if not _takes((*args, *kwargs.values()), widest):
                return function(*args, **kwargs)
            return kernel(*args[: len(names)], **{name: value for name, value in kwargs.items() if name in names})

        return wrapped

    return wrap


def operands(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in one type that products take: bfloat16 where the first is, or where autocast says so; else float32."""
    kind = tensors[0].device.type
    cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    narrow = cast or tensors[0].dtype == torch.bfloat16
    return tuple(tensor.to(torch.bfloat16 if narrow else torch.float32).contiguous() for tensor in tensors)


def _kernels(op: str) -> Any:
    """The module `ops/<op>/triton.py`, or None where it cannot run."""
    if os.environ.get("FAIRWAY_TRITON") == "0" or not (INTERPRETED or torch.cuda.is_available()):
        return None
    if importlib.util.find_spec("triton") is None:
        say_once("GPU kernels are left out: Triton is not installed (pip install fairway[gpu]).")
        return None
    return importlib.import_module(f"fairway.ops.{op}.triton")


def _takes(arguments: tuple[Any, ...], widest: int | None) -> bool:
    """Whether kernels may take these arguments: all tensors on a device, not empty, none of them float64."""
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    if widest is not None and tensors[0].shape[-1] > widest:
        return False
    return all(
        (tensor.is_cuda or INTERPRETED) and tensor.dtype != torch.float64 and tensor.numel() > 0 for tensor in tensors
    )
