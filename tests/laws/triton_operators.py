"""Whether the Triton operators are registered properly, and whether the fastest forms go to them.

`TRITON_INTERPRET=1 python -m laws.triton_operators` prints, as JSON, those of which either is not so.
"""

import importlib
import json
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from laws.triton_paths import CASES, OPS, SCANS, function, inputs

NAMES = {
    "gla": "gla_triton",
    "retention": "scalar_decay_triton",
    "ssd": "scalar_decay_triton",
    "delta": "delta_triton",
    "selective_scan_euler": "selective_scan_triton",
    "selective_scan_zoh": "selective_scan_triton",
}


def calls(op: str, form: str) -> list[tuple[Any, ...]]:
    """What an op in one form hands to its operator."""
    scan = op.startswith("selective_scan")
    arguments, state = inputs(op, SCANS["ragged"] if scan else CASES["one"])
    module = importlib.import_module(f"fairway.ops.{'selective_scan' if scan else op}.triton")
    holder = importlib.import_module("fairway.ops.ssd.triton") if op == "retention" else module
    real, seen = holder._forward, []

    def spy(*given: Any) -> Any:
        seen.append(given)
        return real(*given)

    with mock.patch.object(holder, "_forward", spy):
        function(op, form)(*(x.float() for x in arguments), state.float(), None)
    return seen


def proper(op: str) -> bool:
    """Whether torch's own checks of a custom operator pass: schema, fake tensors, autograd."""
    (given,) = calls(op, "triton")
    leaves = tuple(x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)
    result = torch.library.opcheck(getattr(torch.ops.fairway, NAMES[op]).default, leaves)
    return set(result.values()) == {"SUCCESS"}


if __name__ == "__main__":
    improper = [op for op in OPS if not proper(op)]
    lost = [op for op in OPS if len(calls(op, "fastest")) != 1]
    print(json.dumps({"not proper": improper, "not found": lost}))
