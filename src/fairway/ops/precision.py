"""Ops compute in float32 at least, whatever autocast or the inputs say.

Carried states and products of decays lose meaning in half precision; only the outputs go back to it.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
S = TypeVar("S")


def full_precision(op: Callable[P, tuple[Tensor, S]]) -> Callable[P, tuple[Tensor, S]]:
    """Wraps `op(x, ...) -> (output, state)`: half-precision arguments are widened, autocast is off inside.

    The output has the dtype of the first argument; the state keeps the dtype it was computed in.
    """

    @wraps(op)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> tuple[Tensor, S]:
        first = args[0]
        assert isinstance(first, Tensor)
        kind = first.device.type
        off = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with off:
            wide_args: Any = [_widened(value) for value in args]
            wide_kwargs: Any = {name: _widened(value) for name, value in kwargs.items()}
            output, state = op(*wide_args, **wide_kwargs)
        return output.to(first.dtype), state

    return wrapped


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    if isinstance(value, tuple):
        return tuple(_widened(item) for item in value)
    return value
