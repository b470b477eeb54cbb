"""Blocks of a language model as instructions for the native decoding step: norms, attention, feed-forwards, residuals.

Shape key: D width, E inputs of a matrix, H heads, G key groups, K head width, L positions, N numbers, O outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from torch import Tensor

from fairway.model.activation import ACTIVATIONS
from fairway.model.block import Block, Gain
from fairway.model.ffn.gated import Gated
from fairway.model.ffn.ungated import Ungated
from fairway.model.mixer.attention import Attention
from fairway.model.norm.derf import DynamicErf
from fairway.model.norm.dyt import DynamicTanh
from fairway.model.norm.layer import LayerNorm
from fairway.model.norm.rms import RmsNorm
from fairway.model.parts import Ffn, Mixer, Norm, Position
from fairway.model.rotary import Rotary
from fairway.ops.decode_step.program import (
    Add,
    Apply,
    Attend,
    Gate,
    Instruction,
    Matrix,
    Multiply,
    Normalise,
    NormKind,
    Point,
    Rotate,
    Span,
)

_WHOLE = 16
_SQUASHES: dict[type[Norm], NormKind] = {DynamicTanh: "tanh", DynamicErf: "erf"}


class Untranslated(Exception):
    """A model has a part that no instruction computes; the message says which."""


@dataclass
class Writer:
    """What has been written so far."""

    length: int
    steps: Mapping[int, Tensor]
    arena: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    matrices: list[Matrix] = field(default_factory=list)
    caches: list[tuple[int, int]] = field(default_factory=list)
    _places: dict[tuple[int, ...], int] = field(default_factory=dict)
    _keep: list[Tensor] = field(default_factory=list)

    def add(self, *instructions: Instruction) -> None:
        """Writes instructions down."""
        self.instructions.extend(instructions)

    def span(self, size: int) -> Span:
        """New room in the arena."""
        found = Span(self.arena, size)
        self.arena += -(-size // _WHOLE) * _WHOLE
        return found

    def matrix(self, *pieces: Tensor) -> int:
        """The place of the matrix that these make one above the other; the same pieces get the same place."""
        key = tuple(id(piece) for piece in pieces)
        if key not in self._places:
            self._places[key] = len(self.matrices)
            self._keep.extend(pieces)
            found = [self.steps[id(piece)] for piece in pieces if id(piece) in self.steps]
            step_O = torch.cat(found) if len(found) == len(pieces) else None
            self.matrices.append(Matrix(torch.cat([piece.detach() for piece in pieces]), step_O))
        return self._places[key]

    def product(self, source: Span, *pieces: Tensor) -> Span:
        """The product of a matrix, or of several that read the same vector, in new room."""
        to = self.span(sum(len(piece) for piece in pieces))
        self.add(Multiply(to, source, self.matrix(*pieces)))
        return to


def normalise(writer: Writer, to: Span, source: Span, norm: Norm, heads: int = 1, gain_H: Tensor | None = None) -> None:
    """Writes a norm of each of `heads` parts, and the factor of each behind it."""
    gain_D, bias_D = None, None
    match norm:
        case RmsNorm():
            gain_D = None if norm.gain is None else norm.gain + 1.0 if norm.unit_offset else norm.gain
            bare = Normalise(to, source, "rms", heads, measured=norm.measured, eps=norm.eps)
        case LayerNorm():
            gain_D, bias_D = norm.gain_D, norm.bias_D
            bare = Normalise(to, source, "layer", heads, eps=norm.eps)
        case DynamicTanh() | DynamicErf():
            gain_D, bias_D = norm.gain_D, norm.bias_D
            kind, shift = _SQUASHES[type(norm)], 0.0 if norm.shift is None else float(norm.shift)
            bare = Normalise(to, source, kind, heads, alpha=float(norm.alpha), shift=shift)
        case _:
            raise Untranslated(f"its norm is a {type(norm).__name__}")
    gain_N, bias_N = (_for_heads(part_D, heads, gain_H) for part_D in (gain_D, bias_D))
    if gain_N is None and gain_H is not None:
        gain_N = gain_H.detach().repeat_interleave(source.size // heads)
    writer.add(replace(bare, gain_N=gain_N, bias_N=bias_N))


def write_block(writer: Writer, block: Block, x_D: Span, value: Span | None) -> None:
    """One application of a block to the stream, with a cache of its own."""
    mixed_D = writer.span(x_D.size) if block.parallel else x_D
    y_D = _write_mixer(writer, block.mixer, _write_entry(writer, block, x_D, block.mixer_norm), value)
    _write_exit(writer, block, (mixed_D, x_D, y_D), block.mixer_norm, block.mixer_after, block.mixer_scale)
    y_D = _write_ffn(writer, block.ffn, _write_entry(writer, block, x_D, block.ffn_norm))
    _write_exit(writer, block, (x_D, mixed_D, y_D), block.ffn_norm, block.ffn_after, block.ffn_scale)


def _for_heads(part_D: Tensor | None, heads: int, gain_H: Tensor | None) -> Tensor | None:
    if part_D is None:
        return None
    part_HD = part_D.detach().expand(heads, -1)
    return (part_HD if gain_H is None else part_HD * gain_H.detach()[:, None]).reshape(-1)


def _write_entry(writer: Writer, block: Block, x_D: Span, norm: Norm) -> Span:
    entry_D = x_D
    if block.config.placement in ("pre", "sandwich"):
        entry_D = writer.span(x_D.size)
        normalise(writer, entry_D, x_D, norm)
    if block.entering == 1.0:
        return entry_D
    scaled_D = writer.span(x_D.size)
    writer.add(Add(scaled_D, entry_D, first_scale=block.entering))
    return scaled_D


def _write_exit(
    writer: Writer, block: Block, spans: tuple[Span, Span, Span], norm: Norm, after: Norm | None, scale: Gain | None
) -> None:
    """The stream with a branch's output in it: `spans` are where it goes, the stream, and the output."""
    to_D, x_D, y_D = spans
    if after is not None:
        normalise(writer, y_D, y_D, after)
    gain_D = None if scale is None else scale.gain_D.detach()
    factor = block.config.residual_scale if scale is None else 1.0
    writer.add(Add(to_D, x_D, y_D, block.carried, factor, gain_D))
    if block.config.placement in ("post", "deepnorm"):
        normalise(writer, to_D, to_D, norm)


def _write_mixer(writer: Writer, mixer: Mixer, x_D: Span, value: Span | None) -> Span:
    if not isinstance(mixer, Attention):
        raise Untranslated(f"its mixer is a {type(mixer).__name__}")
    config, heads, groups, width = mixer.config, mixer.config.heads, mixer.groups, mixer.head_width
    qkv = writer.product(x_D, mixer.query.weight, mixer.key.weight, mixer.value.weight)
    q, k = qkv.part(0, heads * width), qkv.part(heads * width, groups * width)
    v = qkv.part((heads + groups) * width, groups * width)
    if value is not None:
        writer.add(Add(v, v, value.part(0, v.size)))
    if mixer.norm is not None:
        normalise(writer, q, q, mixer.norm, heads, mixer.gain_H)
        normalise(writer, k, k, mixer.norm, groups)
    _write_rotation(writer, mixer.position, qkv.part(0, (heads + groups) * width), heads + groups)
    writer.caches.append((groups, width))
    to = writer.span(heads * width)
    cache = len(writer.caches) - 1
    writer.add(Attend(to, q, k, v, cache, heads, groups, config.window, config.softcap, config.exclusive))
    return writer.product(to, mixer.output.weight)


def _write_rotation(writer: Writer, position: Position | None, vector: Span, heads: int) -> None:
    if position is None or type(position).rotate is Position.rotate:
        return
    if not isinstance(position, Rotary) or not position.rotated_keys_stay_valid:
        raise Untranslated(f"its positions are a {type(position).__name__}")
    angle_LR = (torch.arange(writer.length) + position.offset).float()[:, None] * torch.tensor(position.frequencies(0))
    cos_LR, sin_LR = angle_LR.cos() * position.magnitude, angle_LR.sin() * position.magnitude
    writer.add(Rotate(vector, heads, cos_LR, sin_LR, position.interleaved))


def _write_ffn(writer: Writer, ffn: Ffn, x_D: Span) -> Span:
    if isinstance(ffn, Ungated):
        names = [name for name, function in ACTIVATIONS.items() if function is ffn.activation]
        hidden = writer.product(x_D, ffn.input.weight)
        writer.add(Apply(hidden, hidden, _point(names[0])))
    elif isinstance(ffn, Gated):
        both = writer.product(x_D, ffn.input.weight)
        hidden = writer.span(both.size // 2)
        writer.add(Gate(hidden, both, _point(ffn.point)))
    else:
        raise Untranslated(f"its feed-forward is a {type(ffn).__name__}")
    return writer.product(hidden, ffn.output.weight)


def _point(name: str) -> Point:
    points: tuple[Point, ...] = get_args(Point)
    return next(point for point in points if point == name)
