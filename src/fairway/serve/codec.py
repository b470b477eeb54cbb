"""Lossless compression of documents with a language model: range coding of its predictions.

A token costs `-log2 p` bits, so the file is as long as the score says. Probabilities are made from logits in
integers: each logit is rounded to a grid of 128 steps per factor of two, and its weight is read from a table
of powers of two. Both sides run the same steps in the same batches, so their logits agree bit for bit on one
machine; in float64 they agree to far less than one step of the grid on any machine. Range coder: Martin
1979, through `constriction`. Shape key: B batch, V vocabulary.
"""

import hashlib
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from constriction import stream  # pyrefly: ignore[missing-module-attribute]
from torch import Tensor

from fairway.core.device import repeatable
from fairway.core.errors import DataError
from fairway.data.parts import Tokenizer
from fairway.model.lm import LanguageModel
from fairway.serve.engine import walk
from fairway.serve.window import Policy

Precision = Literal["fp32", "fp64"]

_MAGIC = b"FWYZ"
_VERSION = 1
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp64")
_GRID = 128
_TABLE_BITS = 24
_LANES = 64
_FAMILY = stream.model.Categorical(perfect=False)
_CHECK = 6
_TAG = 6
_ENVIRONMENT = 2
_DIGEST = 8
_FIELDS = (3, 3 + _TAG, 3 + _TAG + _ENVIRONMENT, 3 + _TAG + _ENVIRONMENT + _DIGEST)
_LARGEST_EXPANSION = 1 << 14
_LARGEST_WINDOW = 1 << 24


@dataclass(frozen=True)
class Coder:
    """A network in the precision it codes in, its tokenizer and windows, and the tag its files bear."""

    network: LanguageModel
    tokenizer: Tokenizer
    policy: Policy
    precision: Precision
    tag: bytes
    """SHA-256 of the artifact, of which files bear the first bytes; empty where there is none."""


@dataclass(frozen=True)
class Compressed:
    """A compressed text, and what it cost before rounding to bytes."""

    data: bytes
    nats: float
    """Sum of `-ln p` by the unrounded logits of the coding steps, in float64."""


def compress(coder: Coder, documents: Sequence[bytes]) -> Compressed:
    """Documents as one compressed file; raises `DataError` for one that the tokenizer cannot give back."""
    tokenizer = coder.tokenizer
    tokens = tokenizer.encode_all(list(documents))
    for index, (ids, text) in enumerate(zip(tokens, documents, strict=True)):
        if tokenizer.decode(ids) != text:
            raise DataError(
                f"Document {index} does not survive its tokenizer, so it cannot be compressed without loss."
            )
    threads = torch.get_num_threads()
    header = _Header(
        coder.precision,
        min(threads, 255),
        coder.policy,
        coder.tag[:_TAG].ljust(_TAG, b"\0"),
        _environment(),
        _digest(documents),
        len(documents),
        sum(len(ids) + 1 for ids in tokens),
    )
    encoder = stream.queue.RangeEncoder()
    nats: list[float] = []
    edge = tokenizer.boundary
    following = [[*ids.tolist(), edge] for ids in tokens]
    place = [0] * len(tokens)

    def choose(logits_BV: Tensor, lanes: list[int]) -> list[int]:
        chosen = [following[lane][place[lane]] for lane in lanes]
        for lane in lanes:
            place[lane] += 1
        encoder.encode(np.array(chosen, np.int32), _FAMILY, weights(logits_BV))
        log_p_BV = logits_BV.double().log_softmax(-1)
        nats.extend((-log_p_BV[range(len(chosen)), chosen]).tolist())
        return chosen

    with repeatable(header.threads):
        walk(coder.network, coder.policy, edge, len(documents), _LANES, choose)
    words = encoder.get_compressed().astype("<u4").tobytes()
    if not _plausible(header.documents, header.tokens, words):
        raise DataError(f"{header.documents} documents without text are more than one file can tell apart.")
    return Compressed(header.sealed(words), math.fsum(nats))


def decompress(coder: Coder, data: bytes) -> list[bytes]:
    """The documents in a compressed file.

    Raises `DataError` where the file is damaged, comes from another model, or was coded in float32 on a
    machine that rounds differently.
    """
    header, words = _Header.read(data)
    if header.tag != coder.tag[:_TAG].ljust(_TAG, b"\0"):
        raise DataError("This text was compressed with another model; give the artifact that compressed it.")
    if (header.precision, header.policy) != (coder.precision, coder.policy):
        raise DataError(
            f"This text was compressed in {header.precision} by {header.policy}, "
            f"and is being read in {coder.precision} by {coder.policy}."
        )
    if len(words) % 4:
        raise _unreadable(header)
    decoder = stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
    edge = coder.tokenizer.boundary
    decoded: list[list[int]] = [[] for _ in range(header.documents)]
    left = header.tokens

    def choose(logits_BV: Tensor, lanes: list[int]) -> list[int]:
        nonlocal left
        left -= len(lanes)
        if left < 0:
            raise _unreadable(header)
        try:
            chosen = decoder.decode(_FAMILY, weights(logits_BV)).tolist()
        except AssertionError:
            raise _unreadable(header) from None
        for lane, token in zip(lanes, chosen, strict=True):
            decoded[lane].append(token)
        return chosen

    with repeatable(header.threads):
        walk(coder.network, coder.policy, edge, header.documents, _LANES, choose)
    documents = [coder.tokenizer.decode(ids) for ids in decoded]
    if _digest(documents) != header.digest:
        raise _unreadable(header)
    return documents


def settings(data: bytes) -> tuple[Precision, Policy]:
    """Precision and windows that a compressed file was made with."""
    header, _ = _Header.read(data)
    return header.precision, header.policy


def weights(logits_BV: Tensor) -> np.ndarray:
    """Integer weights of all tokens as float64, (B, V); the likeliest is near 2^24.

    The hopeless get 0, which the coder raises to its smallest probability, 2^-24.
    """
    steps_BV = (logits_BV.double() * (_GRID / math.log(2))).round_().long()
    below_BV = (steps_BV.amax(-1, keepdim=True) - steps_BV).clamp_(max=(_TABLE_BITS + 1) * _GRID)
    return (_powers()[below_BV % _GRID] >> (below_BV // _GRID)).double().numpy()


@cache
def _powers() -> Tensor:
    """`round(2^24 * 2^(-i / 128))`, by exact decimal arithmetic."""
    with localcontext(prec=40):
        exact = [Decimal(2) ** (_TABLE_BITS - Decimal(step) / _GRID) for step in range(_GRID)]
    return torch.tensor([int(value.to_integral_value()) for value in exact])


@dataclass(frozen=True)
class _Header:
    """What stands before the coded words: 29 bytes, and four numbers of variable length."""

    precision: Precision
    threads: int
    policy: Policy
    tag: bytes
    environment: bytes
    digest: bytes
    documents: int
    tokens: int

    def sealed(self, words: bytes) -> bytes:
        """The whole file: magic bytes, a checksum of everything behind it, the header, the words."""
        fixed = bytes([_VERSION, _PRECISIONS.index(self.precision), self.threads])
        numbers = b"".join(map(_varint, (self.policy.length, self.policy.stride, self.documents, self.tokens)))
        rest = fixed + self.tag + self.environment + self.digest + numbers + words
        return _MAGIC + hashlib.sha256(rest).digest()[:_CHECK] + rest

    @staticmethod
    def read(data: bytes) -> tuple["_Header", bytes]:
        """The header and the words; raises `DataError` for a file that is damaged or something else."""
        start = len(_MAGIC) + _CHECK
        rest = data[start:]
        if data[: len(_MAGIC)] != _MAGIC:
            raise DataError(f"This is not a text compressed by Fairway: it does not begin with {_MAGIC.decode()}.")
        if len(rest) < 3 + _TAG + _ENVIRONMENT + _DIGEST or hashlib.sha256(rest).digest()[:_CHECK] != data[4:start]:
            raise DataError("This compressed text is damaged or cut short: its checksum does not match.")
        version, precision, threads = rest[:3]
        if version != _VERSION or precision >= len(_PRECISIONS) or threads < 1:
            raise DataError(f"This compressed text has version {version}; this Fairway reads version {_VERSION}.")
        tag, environment, digest = (rest[begin:end] for begin, end in pairwise(_FIELDS))
        place, numbers = _FIELDS[-1], []
        for _ in range(4):
            number, place = _read_varint(rest, place)
            numbers.append(number)
        window, stride, documents, tokens = numbers
        words = rest[place:]
        if not 1 <= stride <= window <= _LARGEST_WINDOW or not _plausible(documents, tokens, words):
            raise DataError(
                f"This compressed text claims {documents} documents of {tokens} tokens in {len(words)} bytes."
            )
        policy = Policy(window, stride)
        return _Header(_PRECISIONS[precision], threads, policy, tag, environment, digest, documents, tokens), words


def _plausible(documents: int, tokens: int, words: bytes) -> bool:
    """Whether so many tokens may be in so few bytes; bounds the work that a file can ask for."""
    return documents <= tokens <= _LARGEST_EXPANSION * (len(words) + 1)


def _unreadable(header: _Header) -> DataError:
    why = "it is damaged"
    if header.environment != _environment() and header.precision == "fp32":
        why += ", or it was coded in fp32 by a machine or torch version that rounds differently"
    return DataError(f"This compressed text cannot be restored: {why}.")


def _environment() -> bytes:
    capability = torch.backends.cpu.get_cpu_capability()
    return hashlib.sha256(f"{torch.__version__} {capability} {platform.machine()}".encode()).digest()[:_ENVIRONMENT]


def _digest(documents: Sequence[bytes]) -> bytes:
    whole = hashlib.sha256()
    for document in documents:
        whole.update(hashlib.sha256(document).digest())
    return whole.digest()[:_DIGEST]


def _varint(number: int) -> bytes:
    pieces = bytearray()
    while number > 127:
        pieces.append(number & 127 | 128)
        number >>= 7
    return bytes([*pieces, number])


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 56, 7):
        if place >= len(data):
            break
        number |= (data[place] & 127) << shift
        place += 1
        if data[place - 1] < 128:
            return number, place
    raise DataError("This compressed text ends in its header.")
