"""flash-linear-attention's naive functions, read from their files alone: importing the package asks for Triton."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

PACKAGE = importlib.util.find_spec("fla")
"""None where it is not installed."""


@cache
def naive(op: str) -> ModuleType:
    """The module of an op's naive functions."""
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    spec = importlib.util.spec_from_file_location(f"fla_{op}", Path(PACKAGE.origin).parent / "ops" / op / "naive.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
