"""A model's step for one token as a short list of instructions on vectors of float32.

Vectors are spans of one arena that lives as long as the sequence: a span that no instruction of this step has written
still holds what an earlier step left, and zeros at the start. `naive.py` says what each instruction computes. Shape
key: O outputs, I inputs, N numbers, L positions, R rotated pairs.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Point = Literal["identity", "relu", "relu2", "leaky_relu2", "gelu", "gelu_tanh", "silu", "sigmoid"]
NormKind = Literal["rms", "layer", "tanh", "erf"]


@dataclass(frozen=True)
class Span:
    """Numbers [start, start + size) of the arena."""

    start: int
    size: int

    @property
    def places(self) -> range:
        """Where they stand."""
        return range(self.start, self.start + self.size)

    def part(self, offset: int, size: int) -> "Span":
        """Some of its numbers."""
        assert offset + size <= self.size
        return Span(self.start + offset, size)


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix and, where its rows are whole multiples of something, of what."""

    weight_OI: Tensor
    step_O: Tensor | None = None


@dataclass(frozen=True)
class Embed:
    """`to = row of the matrix` named by the token, or by its position."""

    to: Span
    matrix: int
    by_position: bool = False


@dataclass(frozen=True)
class EmbedPair:
    """`to = row of the matrix` named by the token and the one before it (`ops/bigram.py`).

    `last` holds the token before plus one, 0 where there is none, and then this one.
    """

    to: Span
    matrix: int
    last: Span


@dataclass(frozen=True)
class Multiply:
    """`to = W source`."""

    to: Span
    source: Span
    matrix: int


@dataclass(frozen=True, eq=False)
class Normalise:
    """Each of `heads` equal parts normalised by itself, then times the gain plus the bias.

    rms: `x / sqrt(mean(x^2) + eps)`, the mean over the first `measured` numbers of a part; layer: `(x - mean(x)) /
    sqrt(var(x) + eps)`; tanh and erf: `f(alpha x + shift)`.
    """

    to: Span
    source: Span
    kind: NormKind
    heads: int = 1
    measured: int = 0
    eps: float = 0.0
    alpha: float = 1.0
    shift: float = 0.0
    gain_N: Tensor | None = None
    bias_N: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Add:
    """`to = first_scale first + second_scale gain .* second`; `second=None` leaves the sum out."""

    to: Span
    first: Span
    second: Span | None = None
    first_scale: float = 1.0
    second_scale: float = 1.0
    gain_N: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Lerp:
    """`to = first + weight .* (second - first)`."""

    to: Span
    first: Span
    second: Span
    weight_N: Tensor


@dataclass(frozen=True, eq=False)
class Rotate:
    """In each head, pairs turned by the angle of the position, in place; i pairs with i + R, or 2i with 2i + 1."""

    vector: Span
    heads: int
    cos_LR: Tensor
    sin_LR: Tensor
    interleaved: bool = False


@dataclass(frozen=True)
class Attend:
    """Attention to the last `window` keys of a cache, to which this key and value are added first.

    `exclusive` removes from each head's output its component along the token's own value.
    """

    to: Span
    query: Span
    key: Span
    value: Span
    cache: int
    heads: int
    groups: int
    window: int | None = None
    softcap: float | None = None
    exclusive: bool = False


@dataclass(frozen=True)
class Apply:
    """`to = g(source)`."""

    to: Span
    source: Span
    point: Point


@dataclass(frozen=True)
class Gate:
    """`to = g(first half of source) .* second half`."""

    to: Span
    source: Span
    point: Point


@dataclass(frozen=True)
class Cap:
    """`to = cap tanh(source / cap)`."""

    to: Span
    source: Span
    cap: float


Instruction = Embed | EmbedPair | Multiply | Normalise | Add | Lerp | Rotate | Attend | Apply | Gate | Cap


@dataclass(frozen=True, eq=False)
class Program:
    """The step of one token: `body` for every token, `head` where its logits are wanted."""

    body: tuple[Instruction, ...]
    head: tuple[Instruction, ...]
    logits: Span
    arena: int
    """Numbers in the arena."""
    matrices: tuple[Matrix, ...]
    caches: tuple[tuple[int, int], ...]
    """Key groups and head width of each cache."""
    length: int
    """Tokens a sequence may have."""

    def lasting(self) -> int:
        """How many instructions of the body leave something to the next step: the rest is for this step's logits alone.

        What they leave stands in a cache, or in a span that a step reads before it writes it.
        """
        written, kept = [False] * self.arena, [False] * self.arena
        for instruction in self.body:
            reads, writes = _spans(instruction)
            for place in (place for span in reads for place in span.places if not written[place]):
                kept[place] = True
            for place in (place for span in writes for place in span.places):
                written[place] = True
        lasting = 0
        for count, instruction in enumerate(self.body, 1):
            left = any(kept[place] for span in _spans(instruction)[1] for place in span.places)
            lasting = count if left or isinstance(instruction, Attend) else lasting
        return lasting


def _spans(instruction: Instruction) -> tuple[list[Span], list[Span]]:
    """What an instruction reads and what it writes."""
    named = {name: value for name, value in vars(instruction).items() if isinstance(value, Span)}
    both = [named[name] for name in ("vector", "last") if name in named]
    writes = [named["to"]] if "to" in named else []
    return [span for name, span in named.items() if name not in ("to", "vector", "last")] + both, writes + both
