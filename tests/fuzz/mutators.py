"""Hostile files as a function of (seed, index): artifacts whose checksum holds and whose inside lies, and shards."""

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch

from artifact.forging import canonical, forged, opened, squeezed
from fairway.artifact.format import MAGIC, Contents, encode
from fairway.artifact.packing import codebook, lowrank, nf4, raw, rows, sparse, trellis
from fairway.artifact.parts import CODERS, PACKINGS

NUMBERS: tuple[Any, ...] = (0, 1, -1, 2, 7, 8, 16, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32, 2**40, 2**64)
OTHERS: tuple[Any, ...] = (
    -(2**63),
    0.5,
    -0.0,
    1e300,
    True,
    False,
    None,
    "",
    "a",
    [],
    {},
    [1, 1],
    [2**15, 2**15],
    {"base": 0},
)
MOST_EDITS = 4
SHARD = struct.Struct("<8sIIQQ")
SHARD_VOCABULARY = 300


@cache
def honest() -> tuple[bytes, ...]:
    """One artifact of every coder; each holds a tensor of every packing."""
    draw = np.random.default_rng(0)
    left_RK, right_KC = torch.from_numpy(draw.normal(size=(6, 2))), torch.from_numpy(draw.normal(size=(2, 8)))
    codes = draw.integers(-9, 10, (6, 8)).astype(np.int32)
    thin = np.where(codes > 5, codes, 0)
    tensors = {
        "rows.weight": rows.pack(codes, draw.integers(-30, 4, 6), (2, 3, 8)),
        "codebook.weight": codebook.pack(codes + 9, torch.linspace(-0.1, 0.1, 19), (6, 8)),
        "sparse.weight": sparse.pack(thin, np.arange(9, dtype=np.int32) + 15_000, -3, (6, 8), 2),
        "trellis.weight": trellis.pack(thin, draw.integers(-30, 4, 6), codes != 3, (6, 8), 3),
        "lowrank.weight": lowrank.pack(codes, draw.integers(-30, 4, 6), left_RK, right_KC, (6, 8)),
        "nf4.weight": nf4.pack(np.abs(codes), draw.integers(-40, -20, 12), (48,), 4),
        "gain": raw.pack(torch.ones(6), "bfloat16"),
        "bias": raw.pack(torch.zeros(3), "float32"),
    }
    assert {packed.kind for packed in tensors.values()} == set(PACKINGS.kinds())
    texts = (b"tokenizer " * 9, bytes(range(200)), b"")
    return tuple(
        encode(Contents({"width": 6, "head": {"softcap": 30.0}}, 64, "bpe", text, tensors, {"fairway": "0.1.0"}, kind))
        for kind in CODERS.kinds()
        for text in texts
    )


@cache
def _opened() -> tuple[tuple[dict[str, Any], bytes], ...]:
    return tuple(opened(data) for data in honest())


def artifact_input(seed: int, index: int) -> tuple[str, bytes]:
    """The name of the mutation, and the file."""
    draw = random.Random(seed << 40 | index)
    header, sections = draw.choice(_opened())
    name, mutate = draw.choices(_ARTIFACT, weights=[weight for _, _, weight in _WEIGHTED])[0]
    return name, mutate(draw, header, sections)


def shard_input(seed: int, index: int) -> tuple[str, bytes]:
    """The name of the mutation, and the file; a reader expects `SHARD_VOCABULARY` ids."""
    draw = random.Random(seed << 40 | index)
    itemsize = draw.choice((2, 2, 4))
    count = draw.choice((0, 1, 5, 40))
    tokens = bytearray(b"".join(draw.randrange(SHARD_VOCABULARY).to_bytes(itemsize, "little") for _ in range(count)))
    fields: list[Any] = [b"FWYSHARD", 1, itemsize, count, SHARD_VOCABULARY]
    kind = draw.choice(("field", "tokens", "length", "bits", "noise"))
    if kind == "field":
        place = draw.randrange(1, 5)
        limit = 2**32 if place < 3 else 2**64
        fields[place] = draw.choice((*NUMBERS, draw.randrange(limit), fields[place] + draw.choice((-1, 1)))) % limit
    if kind == "tokens" and tokens:
        tokens[draw.randrange(len(tokens))] = draw.randrange(256)
    data = bytearray(SHARD.pack(*fields) + tokens)
    if kind == "length":
        data = (
            data[: draw.randrange(len(data) + 1)]
            if draw.random() < 0.5
            else data + draw.randbytes(draw.randrange(1, 9))
        )
    if kind == "bits":
        _flip(draw, data)
    return kind, draw.randbytes(draw.randrange(120)) if kind == "noise" else bytes(data)


def _values(draw: random.Random, header: dict[str, Any], sections: bytes) -> bytes:
    """Values replaced, copied elsewhere, moved or removed, wherever they stand in the header."""
    return forged(_edited(draw, header), sections)


def _both(draw: random.Random, header: dict[str, Any], sections: bytes) -> bytes:
    """The same with damaged sections, so that what passes the plan meets the decoders."""
    return forged(_edited(draw, header), _damaged(draw, sections))


def _text(draw: random.Random, header: dict[str, Any], sections: bytes) -> bytes:
    """Bytes of the header's JSON text changed."""
    return forged(_damaged(draw, canonical(header)), sections)


def _packed(draw: random.Random, header: dict[str, Any], sections: bytes) -> bytes:
    """Bytes of the deflated header changed."""
    return forged((_damaged(draw, squeezed(canonical(header))),), sections)


def _sections(draw: random.Random, header: dict[str, Any], sections: bytes) -> bytes:
    """A good header over damaged sections of the declared length."""
    data = bytearray(sections)
    for _ in range(draw.randrange(1, 6)):
        _flip(draw, data)
    if draw.random() < 0.2:
        start = draw.randrange(len(data))
        data[start:] = draw.randbytes(len(data) - start)
    return forged(header, bytes(data))


def _frame(draw: random.Random, header: dict[str, Any], sections: bytes) -> bytes:
    """Another version or header length, sections cut or extended, under a valid checksum."""
    length = draw.choice((*NUMBERS[:11], draw.randrange(2**32))) % 2**32 if draw.random() < 0.5 else None
    version = draw.choice((0, 1, 1, 1, 2, 255))
    return forged(header, _damaged(draw, sections), length=length, version=version)


def _random(draw: random.Random, header: dict[str, Any], sections: bytes) -> bytes:  # noqa: ARG001
    """Random bytes where the header belongs."""
    return forged((draw.randbytes(draw.randrange(1, 80)),), sections if draw.random() < 0.5 else b"")


def _unsealed(draw: random.Random, header: dict[str, Any], sections: bytes) -> bytes:
    """A file whose checksum does not hold, or no artifact at all."""
    data = bytearray(forged(header, sections))
    _flip(draw, data)
    return bytes(data) if draw.random() < 0.8 else MAGIC + draw.randbytes(draw.randrange(100))


Mutation = Callable[[random.Random, dict[str, Any], bytes], bytes]
_WEIGHTED: tuple[tuple[str, Mutation, float], ...] = (
    ("values", _values, 0.35),
    ("values and sections", _both, 0.15),
    ("text", _text, 0.1),
    ("deflated", _packed, 0.1),
    ("sections", _sections, 0.15),
    ("frame", _frame, 0.05),
    ("random", _random, 0.05),
    ("unsealed", _unsealed, 0.05),
)
_ARTIFACT = [(name, mutation) for name, mutation, _ in _WEIGHTED]


def _edited(draw: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    header = copy.deepcopy(header)
    for _ in range(draw.randrange(1, MOST_EDITS)):
        places = list(_places(header))
        if not places:
            break
        holder, key = draw.choice(places)
        choice = draw.random()
        if choice < 0.45:
            holder[key] = draw.choice(NUMBERS)
        elif choice < 0.6:
            holder[key] = copy.deepcopy(draw.choice((*OTHERS, *_words())))
        elif choice < 0.75:
            other, name = draw.choice(places)
            holder[key] = copy.deepcopy(other[name])
        elif isinstance(holder, list):
            holder.pop(key) if choice < 0.85 else holder.insert(key, copy.deepcopy(holder[key]))
        elif type(holder[key]) is int:
            holder[key] += draw.choice((-2, -1, 1, 2))
    return header


@cache
def _words() -> tuple[str, ...]:
    return (*CODERS.kinds(), *PACKINGS.kinds(), "zlib", "lzma", "stored")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from _places(child)


def _damaged(draw: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut, doubled or replaced."""
    made = bytearray(data or b"\0")
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(len(made))
        choice = draw.random()
        if choice < 0.4:
            made[place] = draw.randrange(256)
        elif choice < 0.6:
            _flip(draw, made)
        elif choice < 0.75:
            made = made[: place + 1]
        else:
            stop = min(len(made), place + draw.randrange(1, 20))
            made[place:place] = made[place:stop]
    return bytes(made)


def _flip(draw: random.Random, data: bytearray) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def described(data: bytes) -> str:
    """A short account of a file for the message of a failed test."""
    return json.dumps({"bytes": len(data), "start": data[:24].hex()})
