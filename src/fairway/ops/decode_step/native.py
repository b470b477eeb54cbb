"""One token after another through a program by the native kernel.

Weights are packed once for a program, in as few bits as hold them exactly (`ops/matvec`); everything else is float32,
so a step differs from `naive.py` by the rounding of float32 alone. Shape key: V vocabulary.
"""

from collections.abc import Sequence as Tokens
from ctypes import c_int, c_long
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from fairway.core.native import kernel, pointer
from fairway.ops.decode_step.program import (
    Add,
    Apply,
    Attend,
    Cap,
    Embed,
    EmbedPair,
    Gate,
    Instruction,
    Lerp,
    Multiply,
    Normalise,
    NormKind,
    Point,
    Program,
    Rotate,
)
from fairway.ops.matvec.native import PackedMatrix, packed

FEWEST_BYTES_FOR_THREADS = 1 << 21
"""Weights of a model below which waiting for each other costs two threads more than they save."""
MOST_THREADS = 2
_OPERATIONS = (Embed, EmbedPair, Multiply, Normalise, Add, Lerp, Rotate, Attend, Apply, Gate, Cap)
_POINTS: tuple[str, ...] = get_args(Point)
_NORMS: tuple[str, ...] = get_args(NormKind)
_FIELDS = ("operation", "kind", "to", "first", "second", "third", "size", "heads", "groups", "index", "extra", "window")
_RECORD = np.dtype([*((name, np.int64) for name in _FIELDS), ("a", np.float64), ("b", np.float64), ("c", np.float64),
                    ("one", np.int64), ("two", np.int64)])  # fmt: skip
_MATRIX = np.dtype([(name, np.int64) for name in ("rows", "columns", "format", "data", "step")])


class Compiled:
    """A program as the kernel reads it; many sequences may use it at once."""

    def __init__(self, program: Program, fewest_bits: int = 4) -> None:
        self.program = program
        self.lasting = program.lasting()
        self.matrices = [packed(one.weight_OI, one.step_O, fewest_bits) for one in program.matrices]
        self._keep: list[Tensor] = []
        self._places, self.memory = _cache_places(program)
        self.matrix_table = np.array([_matrix(one) for one in self.matrices], _MATRIX)
        self.records = np.zeros(len(program.body) + len(program.head), _RECORD)
        for place, instruction in enumerate((*program.body, *program.head)):
            for name, value in self._encoded(instruction).items():
                self.records[place][name] = value

    @property
    def weight_bytes(self) -> int:
        """Bytes of all packed weights."""
        return sum(one.data.nbytes for one in self.matrices)

    @cached_property
    def vocabulary(self) -> int:
        """Tokens that can be taken in: the rows of every matrix that is read by token."""
        tables = (one for one in self.program.body if isinstance(one, Embed) and not one.by_position)
        return min(self.matrices[one.matrix].rows for one in tables)

    def _encoded(self, instruction: Instruction) -> dict[str, float]:
        operation = _OPERATIONS.index(type(instruction))
        return {"operation": operation, "second": -1, **self._fields(instruction)}

    def _fields(self, instruction: Instruction) -> dict[str, float]:
        match instruction:
            case Embed(to, matrix, by_position):
                return {"to": to.start, "index": matrix, "kind": by_position}
            case EmbedPair(to, matrix, last):
                return {"to": to.start, "index": matrix, "first": last.start}
            case Multiply(to, source, matrix):
                return {"to": to.start, "first": source.start, "index": matrix}
            case Normalise(to, source, kind, heads, measured, eps, alpha, shift, gain_N, bias_N):
                numbers = {"kind": _NORMS.index(kind), "index": measured, "a": alpha, "b": shift, "c": eps}
                where = {"to": to.start, "first": source.start, "size": to.size, "heads": heads}
                return {**where, **numbers, "one": self._address(gain_N), "two": self._address(bias_N)}
            case Add(to, first, second, first_scale, second_scale, gain_N):
                where = {"to": to.start, "first": first.start, "second": -1 if second is None else second.start}
                return {**where, "size": to.size, "a": first_scale, "b": second_scale, "one": self._address(gain_N)}
            case Lerp(to, first, second, weight_N):
                where = {"to": to.start, "first": first.start, "second": second.start}
                return {**where, "size": to.size, "one": self._address(weight_N)}
            case Rotate(vector, heads, cos_LR, sin_LR, interleaved):
                where = {"to": vector.start, "size": vector.size, "heads": heads, "index": cos_LR.shape[1]}
                return {**where, "kind": interleaved, "one": self._address(cos_LR), "two": self._address(sin_LR)}
            case Attend():
                return self._attention(instruction)
            case Apply(to, source, point) | Gate(to, source, point):
                kind = _POINTS.index(point)
                return {"to": to.start, "first": source.start, "size": to.size, "kind": kind}
            case Cap(to, source, cap):
                return {"to": to.start, "first": source.start, "size": to.size, "a": cap}

    def _attention(self, by: Attend) -> dict[str, float]:
        where = {"to": by.to.start, "first": by.query.start, "second": by.key.start, "third": by.value.start}
        key, value = self._places[by.cache]
        shape = {"size": by.to.size, "heads": by.heads, "groups": by.groups, "index": key, "extra": value}
        return {**where, **shape, "window": by.window or 0, "a": by.softcap or 0.0, "kind": by.exclusive}

    def _address(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        self._keep.append(tensor.detach().float().contiguous())
        return self._keep[-1].data_ptr()


class Sequence:
    """One growing sequence: its arena, its keys and values, and the tokens seen."""

    def __init__(self, compiled: Compiled) -> None:
        program = compiled.program
        self.compiled = compiled
        self.seen = 0
        self._arena = torch.zeros(_whole(program.arena) + 64)
        self._memory = torch.zeros(compiled.memory)
        self._logits_V = self._arena[program.logits.start : program.logits.start + program.logits.size]
        self._start = (
            _place(compiled.records), c_long(compiled.lasting), c_long(len(compiled.records)),
            _place(compiled.matrix_table), pointer(self._arena), pointer(self._memory),
        )  # fmt: skip
        large = compiled.weight_bytes >= FEWEST_BYTES_FOR_THREADS
        self._threads = c_int(min(torch.get_num_threads(), MOST_THREADS) if large else 1)
        self._length = c_long(program.length)
        self._run = kernel("decode_step")

    def take(self, tokens: Tokens[int]) -> Tensor:
        """Takes in some tokens, at least one; returns the logits of the next, (V,), good until the next call."""
        count = len(tokens)
        assert 0 < count <= self.compiled.program.length - self.seen
        assert min(tokens) >= 0
        assert max(tokens) < self.compiled.vocabulary
        given = (c_long * count)(*tokens)
        self._run(*self._start, given, c_long(count), c_long(self.seen), self._length, self._threads)
        self.seen += count
        return self._logits_V

    def forget(self) -> None:
        """Begins anew, as a sequence without tokens."""
        self.seen = 0
        self._arena.zero_()


def _cache_places(program: Program) -> tuple[list[tuple[int, int]], int]:
    """Where the keys and the values of each cache begin, and how many numbers all of them are."""
    places, end = [], 0
    for groups, width in program.caches:
        keys, values = groups * _whole(program.length) * width, groups * program.length * _whole(width)
        places.append((end, end + keys))
        end += keys + _whole(values)
    return places, end


def _whole(count: int) -> int:
    return -(-count // 16) * 16


def _matrix(one: PackedMatrix) -> tuple[int, ...]:
    return one.rows, one.columns, one.format, one.data.data_ptr(), 0 if one.step_O is None else one.step_O.data_ptr()


def _place(array: np.ndarray[Any, Any]) -> Any:
    return np.ctypeslib.as_ctypes(array.view(np.uint8))
