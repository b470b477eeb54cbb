"""The artifact's header: canonical JSON, deflated with a fixed dictionary, parsed into a checked plan
before anything is allocated.

Canonical means: ASCII, sorted keys, no spaces, finite numbers, and equal to what this module would write
for the same values; so duplicate keys and odd spellings of numbers are refused.
"""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from fairway.artifact.parts import packing, refuse_unless
from fairway.core.errors import ArtifactError

LARGEST_HEADER = 1 << 16
LARGEST_TOKENIZER = 1 << 24
MOST_TENSORS = 4096
MOST_DIMENSIONS = 8
MOST_EXPANSION = 256
"""A file may decode to at most this many times its size, plus `FREE_EXPANSION` bytes."""
FREE_EXPANSION = 1 << 24
_DEEPEST = 24
_NAME = re.compile(r"[A-Za-z0-9_.]{1,128}", re.ASCII)
_KEYS = {"coder", "model", "notes", "streams", "tensors", "tokenizer", "vocabulary"}
_DICTIONARY = (
    b'"fingerprint":"fairway":"seconds_train":"window":"version":"0.1.0","depth.blocks.10.mixer.conv.weight"shared'
    b'"mixer":[{"kind":"gla","kind":"mamba2","kind":"deltanet","heads":8,"expand":2,"router.weight"experts'
    b'"streams":["tokenizer":["bpe","byte","lzma",zlib","stored"],"vocabulary":1024}"embedding":{"deviation":0.02,'
    b'"kind":"token"},"ffn":{"kind":"swiglu","ratio":4.0},"head":{"scale":1.0,"softcap":30.0,"tied":true},"mixer":{'
    b'"exclusive":false,"heads":6,"key_groups":null,"kind":"attention","qk_norm":true,"softcap":null,"window":null},'
    b'"norm":{"kind":"rms"},"position":{"kind":"rope","fraction":1.0,"base":10000.0},"width":192},"notes":{'
    b'["norm.gain_D","raw",[192],{"format":0},[["head.own.weight",'
    b'["depth.blocks.0.ffn.gate.weight","depth.blocks.0.mixer.gain_H","raw",[6],{"format":0},['
    b'["depth.blocks.0.mixer_norm.gain_D",["depth.blocks.0.ffn_norm.gain_D","depth.blocks.0.mixer.query.weight",'
    b'"depth.blocks.0.mixer.key.weight","depth.blocks.0.mixer.value.weight","depth.blocks.0.mixer.output.weight",'
    b'"depth.blocks.0.ffn.input.weight","rows",[768,192],{"base":-40,"group":0,"resolution":8},[0,1]],'
    b'["depth.blocks.0.ffn.output.weight","rows",[192,768],{"base":-40,"group":0,"resolution":8},[0,1]],'
    b'{"coder":"ans","model":{"block":{},"context":256,"depth":{"kind":"plain","layers":6},'
)


@dataclass(frozen=True)
class Entry:
    """One tensor of the plan."""

    name: str
    kind: str
    shape: tuple[int, ...]
    settings: dict[str, int]
    streams: tuple[int, ...]
    """For each of its arrays, the stream that holds it."""
    counts: dict[str, int] = field(default_factory=dict)
    """Length of each of its arrays."""


@dataclass(frozen=True)
class Plan:
    """Everything the header says, checked."""

    coder: str
    model: dict[str, Any]
    notes: dict[str, Any]
    vocabulary: int
    tokenizer_kind: str
    tokenizer_method: str
    tokenizer_bytes: int
    tokenizer_decoded: int
    streams: tuple[int, ...]
    """Bytes of each coded stream, in their order in the file."""
    entries: tuple[Entry, ...]

    def plain(self) -> dict[str, Any]:
        """The header as JSON-able values."""
        tokenizer = [self.tokenizer_kind, self.tokenizer_method, self.tokenizer_bytes, self.tokenizer_decoded]
        tensors = [
            [entry.name, entry.kind, list(entry.shape), entry.settings, list(entry.streams)] for entry in self.entries
        ]
        return {
            "coder": self.coder,
            "model": self.model,
            "notes": self.notes,
            "streams": list(self.streams),
            "tensors": tensors,
            "tokenizer": tokenizer,
            "vocabulary": self.vocabulary,
        }

    def stream_counts(self) -> list[int]:
        """Integers in each stream."""
        counts = [0] * len(self.streams)
        for entry in self.entries:
            for stream, count in zip(entry.streams, entry.counts.values(), strict=True):
                counts[stream] += count
        return counts


def canonical(value: Any) -> bytes:
    """The one JSON text of plain values; raises `ValueError` where a number is not finite."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode("ascii")


def deflate(plan: Plan) -> bytes:
    """The header's bytes; raises `ArtifactError` where it is too large."""
    text = canonical(plan.plain())
    refuse_unless(len(text) <= LARGEST_HEADER, f"The header takes {len(text)} bytes; at most {LARGEST_HEADER} may be.")
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    return squeezer.compress(text) + squeezer.flush()


def parse(data: bytes, body: int, file: int) -> Plan:
    """The checked plan of a deflated header; `body` bytes of sections follow it in a file of `file` bytes."""
    plan = _read_plan(_checked_json(_inflated(data)))
    total = plan.tokenizer_bytes + sum(plan.streams)
    refuse_unless(total == body, f"The header describes {total} bytes of content; the file holds {body}.")
    allowed = FREE_EXPANSION + MOST_EXPANSION * file
    numbers = max(sum(plan.stream_counts()), sum(prod(entry.shape) for entry in plan.entries))
    refuse_unless(
        4 * numbers <= allowed,
        f"The header declares {4 * numbers:,} decoded bytes; a file of {file:,} bytes may declare {allowed:,}.",
    )
    return plan


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-15, zdict=_DICTIONARY)
    try:
        text = inflater.decompress(data, LARGEST_HEADER)
    except zlib.error as error:
        raise ArtifactError(f"The header cannot be inflated: {error}.") from None
    refuse_unless(inflater.eof, f"The header is cut short or longer than {LARGEST_HEADER} bytes.")
    refuse_unless(not inflater.unused_data, "There are stray bytes behind the header.")
    return text


def _checked_json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("ascii"))
        refuse_unless(isinstance(value, dict), "The header is not a JSON object.")
        refuse_unless(_depth(value) <= _DEEPEST, f"The header is nested more than {_DEEPEST} deep.")
        refuse_unless(canonical(value) == text, "The header is not canonical JSON.")
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"The header is not canonical JSON: {str(error)[:100]}.") from None
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [item for item in level if isinstance(item, (dict, list))]
        level = [child for item in inner for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _read_plan(header: dict[str, Any]) -> Plan:
    refuse_unless(
        set(header) == _KEYS,
        f"The header has the keys {sorted(header)!r:.200}; {sorted(_KEYS)} belong there.",
    )
    for key in ("model", "notes"):
        refuse_unless(isinstance(header[key], dict), f'"{key}" in the header is not an object.')
    tokenizer = header["tokenizer"]
    refuse_unless(
        isinstance(tokenizer, list) and len(tokenizer) == 4,
        '"tokenizer" in the header is not a list of four.',
    )
    kind, method, size, decoded = tokenizer
    streams, tensors = header["streams"], header["tensors"]
    refuse_unless(isinstance(streams, list), '"streams" in the header is not a list.')
    refuse_unless(isinstance(tensors, list), '"tensors" in the header is not a list.')
    refuse_unless(
        len(tensors) <= MOST_TENSORS,
        f"The header lists {len(tensors)} tensors; at most {MOST_TENSORS} may be.",
    )
    lengths = tuple(_integer(length, 0, 2**40, "The length of a stream") for length in streams)
    entries = tuple(_read_entry(tensor, len(lengths)) for tensor in tensors)
    names = {entry.name for entry in entries}
    refuse_unless(len(names) == len(entries), "The header lists a tensor twice.")
    used = {stream for entry in entries for stream in entry.streams}
    refuse_unless(len(used) == len(lengths), "The header lists a stream that no tensor uses.")
    return Plan(
        coder=_word(header["coder"], "The coder"),
        model=header["model"],
        notes=header["notes"],
        vocabulary=_integer(header["vocabulary"], 2, 2**24, "The vocabulary"),
        tokenizer_kind=_word(kind, "The tokenizer"),
        tokenizer_method=_word(method, "The tokenizer's compression"),
        tokenizer_bytes=_integer(size, 0, 2**40, "The size of the tokenizer"),
        tokenizer_decoded=_integer(decoded, 0, LARGEST_TOKENIZER, "The decoded size of the tokenizer"),
        streams=lengths,
        entries=entries,
    )


def _read_entry(tensor: Any, streams: int) -> Entry:
    refuse_unless(isinstance(tensor, list) and len(tensor) == 5, "A tensor in the header is not a list of five.")
    name, kind, shape, settings, where = tensor
    name = _word(name, "A tensor's name")
    refuse_unless(
        isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS, f"The shape of {name} is not a short list."
    )
    dimensions = tuple(_integer(size, 1, 2**31 - 1, f"A dimension of {name}") for size in shape)
    refuse_unless(prod(dimensions) < 2**31, f"{name} has {prod(dimensions):,} numbers; fewer than 2^31 may be.")
    refuse_unless(isinstance(settings, dict) and len(settings) <= 16, f"The settings of {name} are not a small object.")
    numbers = {key: _integer(value, -(2**31), 2**31, f'"{key[:20]}" of {name}') for key, value in settings.items()}
    refuse_unless(isinstance(where, list), f"The streams of {name} are not a list.")
    places = tuple(_integer(place, 0, streams - 1, f"A stream of {name}") for place in where)
    kind = _word(kind, f"The packing of {name}")
    counts = _planned(name, kind, dimensions, numbers)
    refuse_unless(
        len(places) == len(counts),
        f"{name} names {len(places)} streams; its packing has {len(counts)} arrays.",
    )
    return Entry(name, kind, dimensions, numbers, places, counts)


def _planned(name: str, kind: str, shape: tuple[int, ...], settings: Mapping[str, int]) -> dict[str, int]:
    try:
        counts = packing(kind).plan(shape, settings)
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from None
    for array, count in counts.items():
        refuse_unless(0 <= count < 2**31, f'The array "{array}" of {name} would hold {count:,} integers.')
    return counts


def _integer(value: Any, low: int, high: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ArtifactError(f"{what} is {value!r:.40}; a whole number from {low} to {high} belongs there.")
    return value


def _word(value: Any, what: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ArtifactError(f"{what} is {value!r:.40}; letters, digits, dots and underscores belong there.")
    return value
