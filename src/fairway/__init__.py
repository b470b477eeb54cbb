"""Fairway: train, compress, prove and serve the best small language model within a budget."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`fairway.load` is found on first use, so that `import fairway` alone stays quick and needs no torch."""
    if name == "load":
        return import_module("fairway.serve.load").load
    raise AttributeError(f"module 'fairway' has no attribute {name!r}")
