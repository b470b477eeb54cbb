"""Compiles the Triton kernels of an op for a GPU that need not be there.

`python -m laws.triton_compiling OP ARCHITECTURE` prints the bytes of shared memory of each kernel, as JSON.
"""

import json
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from laws.triton_paths import Case, function, inputs

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.bool: "*i1"}


def compiled(op: str, architecture: int) -> dict[str, int]:
    """Shared memory of every kernel that the forward and backward pass of usual shapes launch."""
    shared: dict[str, int] = {}

    def launch(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:  # noqa: ARG001
        source = _source(kernel, arguments)
        made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        name = f"{kernel.__name__} {len(shared)}"
        shared[name] = made.metadata.shared

    JITFunction.run = launch
    for dtype, width in ((torch.bfloat16, 64), (torch.float32, 128)):
        scan = op.startswith("selective_scan")
        case = Case(130, batch=1, heads=2, keys=16 if scan else width, values=width)
        arguments, state = inputs(op, case)
        narrow = 3 if scan else 4
        leaves = [x.to(dtype if x.ndim == narrow else torch.float32).requires_grad_() for x in arguments]
        starts = torch.zeros(1, 130, dtype=torch.bool) if dtype == torch.float32 else None
        output, after = function(op, "triton")(*leaves, state.float().requires_grad_(), starts)
        (output.float().sum() + after.sum()).backward()
    return shared


def _source(kernel: JITFunction, arguments: tuple[Any, ...]) -> ASTSource:
    signature, constants, attributes = {}, {}, {}
    for index, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=True)):
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32"
    return ASTSource(kernel, signature, constants, attributes)


if __name__ == "__main__":
    print(json.dumps(compiled(sys.argv[1], int(sys.argv[2]))))
