"""Artifacts with a valid checksum and a lying inside."""

import copy
import hashlib
import json
import zlib
from typing import Any

import numpy as np

from fairway.artifact import header as header_module
from fairway.artifact.format import MAGIC, Contents, encode, read_plan
from fairway.artifact.packing import raw, rows

DICTIONARY = header_module._DICTIONARY


def honest() -> bytes:
    """A small artifact without any lie."""
    import torch

    random = np.random.default_rng(0)
    codes = np.rint(random.normal(size=(8, 6)) * 3).astype(np.int32)
    tensors = {
        "a.weight": rows.pack(codes, random.integers(-30, -25, 8), (8, 6)),
        "b.weight": rows.pack(codes[::-1].copy(), random.integers(-30, -25, 8), (2, 4, 6)),
        "gain": raw.pack(torch.ones(6), "float16"),
    }
    model = {"width": 6, "head": {"softcap": 30.0}}
    return encode(Contents(model, 64, "bpe", b"tokenizer " * 9, tensors, {"fairway": "0.1.0"}))


def opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header as plain values that may be changed, and the sections behind it."""
    plan, start = read_plan(data)
    return copy.deepcopy(plan.plain()), data[start:-32]


def squeezed(text: bytes) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return squeezer.compress(text) + squeezer.flush()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def forged(header: Any, sections: bytes, *, length: int | None = None, version: int = 1) -> bytes:
    """A file whose frame and checksum are right; `header`: values, JSON text, or already deflated bytes in
    a tuple.
    """
    if isinstance(header, tuple):
        packed = header[0]
    else:
        packed = squeezed(header if isinstance(header, bytes) else canonical(header))
    size = len(packed) if length is None else length
    data = MAGIC + bytes([version]) + size.to_bytes(4, "little") + packed + sections
    return data + hashlib.sha256(data).digest()
