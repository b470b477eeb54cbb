"""The native step against its definition, instruction by instruction, on each instruction level."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from fairway.core.native import LEVELS
from fairway.core.seed import generator
from fairway.ops.decode_step import naive, native
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
    Matrix,
    Multiply,
    Normalise,
    Point,
    Program,
    Rotate,
    Span,
)
from laws.levels import at_level

POINTS: tuple[Point, ...] = get_args(Point)
VOCABULARY, LENGTH = 11, 40


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, "step", name, *shape))


def program(width: int, *instructions: Instruction, result: Span, caches: tuple[tuple[int, int], ...] = ()) -> Program:
    """Reads a random vector for each token into the first `width` numbers, then does as told."""
    table = Matrix(draw(VOCABULARY, width, name="table"))
    square = Matrix(draw(result.size, width, name="square") / width**0.5)
    arena = 16 * 64
    return Program((Embed(Span(0, width), 0), *instructions), (), result, arena, (table, square), caches, LENGTH)


def compared(made: Program, level: str, tokens: int = 3, error: float = 3e-6) -> None:
    slow = naive.Sequence(made)
    with at_level(level):
        fast = native.Sequence(native.Compiled(made))
        for place in range(tokens):
            token = 7 * place % VOCABULARY
            wanted = naive.step(slow, token)
            seen = fast.take([token]).double()
            assert (seen - wanted).norm() <= error * max(1e-3, float(wanted.norm())), (place, seen, wanted)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("width", [1, 15, 48, 70])
def test_sums_mixtures_and_caps(width: int, level: str) -> None:
    x, y, z = Span(0, width), Span(80, width), Span(160, width)
    steps = (
        Add(y, x, first_scale=0.7),
        Add(z, x, z, 0.5, 2.0, draw(width, name="gain")),
        Lerp(y, y, z, draw(width, name="weight")),
        Add(z, z, y, second_scale=-0.3),
        Cap(y, z, 0.8),
    )
    compared(program(width, *steps, result=y), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("width", [1, 15, 48])
def test_rows_of_pairs(width: int, level: str) -> None:
    found = Span(80, width)
    compared(program(width, EmbedPair(found, 0, Span(160, 1)), result=found), level, tokens=8)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["rms", "layer", "tanh", "erf"])
@pytest.mark.parametrize(("width", "heads"), [(3, 1), (70, 1), (66, 3), (64, 4)])
def test_norms_of_whole_vectors_and_of_heads(width: int, heads: int, kind: native.NormKind, level: str) -> None:
    gain, bias = draw(width, name="gain"), draw(width, name="bias")
    measured = max(1, width // heads - 1)
    step = Normalise(Span(0, width), Span(0, width), kind, heads, measured, 1e-4, 0.8, 0.1, gain, bias)
    compared(program(width, step, result=Span(0, width)), level)
    bare = Normalise(Span(80, width), Span(0, width), kind, heads, width // heads, 1e-4)
    compared(program(width, bare, result=Span(80, width)), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("point", POINTS)
def test_point_functions_and_gates(point: Point, level: str) -> None:
    compared(program(70, Apply(Span(80, 70), Span(0, 70), point), result=Span(80, 70)), level)
    compared(program(70, Gate(Span(80, 35), Span(0, 70), point), result=Span(80, 35)), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rows", [1, 17, 64, 100])
def test_products_write_every_row(rows: int, level: str) -> None:
    compared(program(37, Multiply(Span(160, rows), Span(0, 37), 1), result=Span(160, rows)), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("pairs", [1, 4, 5])
def test_rotation_by_the_position(pairs: int, interleaved: bool, level: str) -> None:
    angle = draw(LENGTH, pairs, name="angle")
    compared(program(30, Rotate(Span(0, 30), 3, angle.cos(), angle.sin(), interleaved), result=Span(0, 30)), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("heads", "groups", "width"), [(1, 1, 5), (4, 2, 16), (3, 1, 33), (2, 2, 6)])
@pytest.mark.parametrize(("window", "softcap", "exclusive"), [(None, None, False), (7, 2.0, False), (1, None, True)])
def test_attention_to_a_growing_cache(
    heads: int, groups: int, width: int, window: int | None, softcap: float | None, exclusive: bool, level: str
) -> None:
    total = (heads + 2 * groups) * width
    q, k = Span(0, heads * width), Span(heads * width, groups * width)
    v, y = Span((heads + groups) * width, groups * width), Span(320, heads * width)
    step = Attend(y, q, k, v, 0, heads, groups, window, softcap, exclusive)
    made = program(
        total, Add(Span(0, total), Span(0, total), first_scale=1.5), step, result=y, caches=((groups, width),)
    )
    compared(made, level, tokens=LENGTH, error=2e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_many_tokens_at_once_and_a_new_beginning_are_the_same(level: str) -> None:
    step = Attend(Span(80, 20), Span(0, 20), Span(0, 20), Span(0, 20), 0, 2, 2)
    last = Add(Span(120, 20), Span(120, 20), Span(80, 20), 0.5)
    made = program(20, step, last, result=Span(120, 20), caches=((2, 10),))
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    with at_level(level):
        one, other = (native.Sequence(native.Compiled(made)) for _ in range(2))
        singly = [one.take([token]).clone() for token in tokens][-1]
        assert torch.equal(other.take(tokens), singly)
        other.forget()
        other.take(tokens[:3])
        assert torch.equal(other.take(tokens[3:]), singly)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("accumulates", [False, True])
def test_what_only_the_last_token_needs_is_computed_for_it_alone(accumulates: bool, level: str) -> None:
    x, y, z = Span(0, 20), Span(80, 20), Span(160, 20)
    carried = (EmbedPair(z, 0, Span(320, 1)), Add(x, x, z))
    attention = (Attend(y, x, x, x, 0, 2, 2, window=3), Add(x, x, y), Attend(y, x, x, x, 1, 2, 1))
    behind = (Add(z, z, y), Add(y, y, y, 0.5) if not accumulates else Add(Span(400, 20), Span(400, 20), y))
    made = program(20, *carried, *attention, *behind, result=behind[1].to, caches=((2, 10), (1, 10)))
    assert made.lasting() == (8 if accumulates else 6)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    with at_level(level):
        one, other = (native.Sequence(native.Compiled(made)) for _ in range(2))
        singly = [one.take([token]).clone() for token in tokens][-1]
        assert torch.equal(other.take(tokens), singly)


@pytest.mark.parametrize("level", LEVELS)
def test_two_threads_compute_the_same_bits_as_one(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = Span(0, 64), Span(160, 100), Span(320, 64)
    steps = (
        Attend(spans[2], spans[0], spans[0], spans[0], 0, 4, 4),
        Multiply(spans[1], spans[2], 1),
        Apply(spans[1], spans[1], "relu2"),
    )
    made = program(64, *steps, result=spans[1], caches=((4, 16),))
    with at_level(level):
        one = native.Sequence(native.Compiled(made))
        before = torch.get_num_threads()
        monkeypatch.setattr(native, "FEWEST_BYTES_FOR_THREADS", 0)
        torch.set_num_threads(2)
        two = native.Sequence(native.Compiled(made))
        torch.set_num_threads(before)
        assert two._threads.value == 2
        for token in range(VOCABULARY):
            assert torch.equal(one.take([token]), two.take([token]))
