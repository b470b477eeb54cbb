"""One token through a program, instruction by instruction, in float64: the definition.

See `program.py` for the instructions. Shape key: H heads, G key groups, S keys, K head width.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from fairway.ops.attention.naive import attend
from fairway.ops.bigram import bigram_rows
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
    Point,
    Program,
    Rotate,
    Span,
)


@dataclass
class Sequence:
    """The arena, the keys and values of every cache, and the tokens seen."""

    program: Program
    seen: int = 0
    arena: Tensor = field(init=False)
    key_GSK: list[Tensor] = field(init=False)
    value_GSK: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.arena = torch.zeros(self.program.arena, dtype=torch.float64)
        empty = [torch.zeros(groups, 0, width, dtype=torch.float64) for groups, width in self.program.caches]
        self.key_GSK, self.value_GSK = list(empty), list(empty)

    def read(self, span: Span) -> Tensor:
        """A copy of some numbers."""
        return self.arena[span.start : span.start + span.size].clone()

    def write(self, span: Span, value: Tensor) -> None:
        """Replaces some numbers."""
        self.arena[span.start : span.start + span.size] = value


def step(sequence: Sequence, token: int) -> Tensor:
    """Takes in one token; returns the logits of the next, (V,)."""
    assert sequence.seen < sequence.program.length
    for instruction in (*sequence.program.body, *sequence.program.head):
        _run(sequence, instruction, token)
    sequence.seen += 1
    return sequence.read(sequence.program.logits)


def _run(sequence: Sequence, instruction: Instruction, token: int) -> None:
    read = sequence.read
    match instruction:
        case Embed(to, matrix, by_position):
            row = sequence.seen if by_position else token
            sequence.write(to, sequence.program.matrices[matrix].weight_OI[row].double())
        case EmbedPair(to, matrix, last):
            table_NE = sequence.program.matrices[matrix].weight_OI
            row_BT = bigram_rows(torch.tensor([[token]]), read(last).long() - 1, None, len(table_NE))
            sequence.write(to, table_NE[row_BT[0, 0]].double())
            sequence.write(last, torch.tensor([token + 1.0]))
        case Multiply(to, source, matrix):
            sequence.write(to, sequence.program.matrices[matrix].weight_OI.double() @ read(source))
        case Normalise():
            sequence.write(instruction.to, _normalised(read(instruction.source), instruction))
        case Add(to, first, second, first_scale, second_scale, gain_N):
            total = first_scale * read(first)
            if second is not None:
                scaled = second_scale * read(second)
                total = total + (scaled if gain_N is None else scaled * gain_N.double())
            sequence.write(to, total)
        case Lerp(to, first, second, weight_N):
            sequence.write(to, torch.lerp(read(first), read(second), weight_N.double()))
        case Rotate():
            sequence.write(instruction.vector, _turned(read(instruction.vector), instruction, sequence.seen))
        case Attend():
            sequence.write(instruction.to, _attended(sequence, instruction))
        case Apply(to, source, point):
            sequence.write(to, _point(read(source), point))
        case Gate(to, source, point):
            opened, held = read(source).chunk(2)
            sequence.write(to, _point(opened, point) * held)
        case Cap(to, source, cap):
            sequence.write(to, cap * torch.tanh(read(source) / cap))


def _normalised(x_N: Tensor, by: Normalise) -> Tensor:
    x_HK = x_N.view(by.heads, -1)
    if by.kind == "rms":
        y_HK = x_HK / (x_HK[:, : by.measured].square().mean(1, keepdim=True) + by.eps).sqrt()
    elif by.kind == "layer":
        y_HK = (x_HK - x_HK.mean(1, keepdim=True)) / (x_HK.var(1, correction=0, keepdim=True) + by.eps).sqrt()
    else:
        u_HK = by.alpha * x_HK + by.shift
        y_HK = u_HK.tanh() if by.kind == "tanh" else u_HK.erf()
    y_N = y_HK.reshape(-1)
    if by.gain_N is not None:
        y_N = y_N * by.gain_N.double()
    return y_N if by.bias_N is None else y_N + by.bias_N.double()


def _turned(x_N: Tensor, by: Rotate, position: int) -> Tensor:
    x_HK = x_N.view(by.heads, -1).clone()
    cos_R, sin_R = by.cos_LR[position].double(), by.sin_LR[position].double()
    pairs = len(cos_R)
    first = slice(0, 2 * pairs, 2) if by.interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if by.interleaved else slice(pairs, 2 * pairs)
    one_HR, two_HR = x_HK[:, first].clone(), x_HK[:, second].clone()
    x_HK[:, first] = one_HR * cos_R - two_HR * sin_R
    x_HK[:, second] = one_HR * sin_R + two_HR * cos_R
    return x_HK.reshape(-1)


def _attended(sequence: Sequence, by: Attend) -> Tensor:
    own_G1K = sequence.read(by.value).view(by.groups, 1, -1)
    key_GSK = torch.cat((sequence.key_GSK[by.cache], sequence.read(by.key).view(by.groups, 1, -1)), dim=1)
    value_GSK = torch.cat((sequence.value_GSK[by.cache], own_G1K), dim=1)
    sequence.key_GSK[by.cache], sequence.value_GSK[by.cache] = key_GSK, value_GSK
    query_H1K = sequence.read(by.query).view(by.heads, 1, -1)
    first = 0 if by.window is None else max(0, key_GSK.shape[1] - by.window)
    y_HK = attend(query_H1K[None], key_GSK[None], value_GSK[None], torch.tensor([[first]]), by.softcap)[0, :, 0]
    if by.exclusive:
        own_HK = own_G1K[:, 0].repeat_interleave(by.heads // by.groups, dim=0)
        share = (y_HK * own_HK).sum(1, keepdim=True) / own_HK.square().sum(1, keepdim=True).clamp_min(1e-12)
        y_HK = y_HK - share * own_HK
    return y_HK.reshape(-1)


def _point(x: Tensor, point: Point) -> Tensor:
    match point:
        case "identity":
            return x
        case "relu":
            return x.relu()
        case "relu2":
            return x.relu().square()
        case "leaky_relu2":
            return functional.leaky_relu(x, 0.5).square()
        case "gelu":
            return functional.gelu(x)
        case "gelu_tanh":
            return functional.gelu(x, approximate="tanh")
        case "silu":
            return functional.silu(x)
        case "sigmoid":
            return x.sigmoid()
