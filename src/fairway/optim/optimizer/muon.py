"""Orthogonalised momentum for hidden matrices, Adam for everything else.

`m = mu m + (1-mu) g`, `u = (1-mu) g + mu m` (Nesterov) or `m`, `o = NS(u)`, `w = (1 - lr*wd) w - lr s o` with
NS of `fairway.optim.orthogonal`. Scale s: `original` sqrt(max(1, R/C)); `spectral` sqrt(R/C), steepest
descent in the RMS-to-RMS norm; `match_rms_adamw` 0.2 sqrt(max(R, C)), which makes AdamW's rates fit (Liu et
al. 2025, arXiv:2502.16982). Options: `equalise_rows` divides each row of u by its norm first (MuonEq-R,
arXiv:2603.28254); `normalise_neurons` divides each row of o by the root of a running mean of its squares and
restores the norm of o (NorMuon: Li et al. 2025, arXiv:2510.05491); `cautious` decays only where that and the
update pull the same way (Chen et al. 2025, arXiv:2510.12402).

Matrices of role `matrix` with more than two dimensions are stacks, each matrix on its own; parts that fuse
several matrices along the rows name them through `Part.pieces`. Shape key: N matrices, R rows, C columns.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.core.device import fast_bfloat16
from fairway.model.parts import Role, parameter_pieces
from fairway.ops.momentum.native import descend, direction, served
from fairway.optim.adam import AdamRule
from fairway.optim.groups import make_groups, members_of
from fairway.optim.orthogonal import CoefficientName, coefficients, iterate, orthogonalise
from fairway.optim.parts import Group, Growth, Optimizer, OptimizerConfig, Rates, RateScale, Rule

SOURCE = Source("Jordan et al.", 2024, "kellerjordan.github.io/posts/muon")

ScaleRule = Literal["original", "spectral", "match_rms_adamw"]
Arithmetic = Literal["auto", "bfloat16", "float32"]

_CHUNK_CPU = 1 << 20
"""Elements updated together on a CPU: about 2 MB of bfloat16, that the products of one iteration hand to the next."""
_CHUNK = 1 << 27
_TINY = 1e-30


class Config(OptimizerConfig):
    """Settings of Muon and of the Adam beside it."""

    lr: float = Field(default=0.02, ge=0)
    """Learning rate of the matrices."""
    rates: Rates = Rates(embedding=0.03, head=0.008, vector=0.02, scalar=0.02, router=0.008, decay=0.01)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    first_momentum: float = Field(default=0.85, ge=0, lt=1)
    """Momentum at the start; it grows linearly during `momentum_warmup`."""
    momentum_warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the progress over which the momentum grows."""
    nesterov: bool = True
    steps: int = Field(default=5, ge=1, le=40)
    """Newton-Schulz iterations."""
    coefficients: CoefficientName = "classic"
    scale: ScaleRule = "original"
    equalise_rows: bool = False
    normalise_neurons: bool = False
    neuron_beta: float = Field(default=0.95, ge=0, lt=1)
    cautious: bool = False
    arithmetic: Arithmetic = "auto"
    """Format of the iterations; auto is bfloat16 where the machine multiplies it fast. float64 stays so."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)

    def matrix_rate(self, role: Role, growth: Growth) -> float:
        """What the scale rule lacks of a spectral norm of sqrt(outputs / inputs); 1 for `spectral`."""
        if role is not Role.MATRIX:
            return super().matrix_rate(role, growth)
        own = update_scale(self.scale, growth.outputs, growth.inputs)
        base = update_scale(self.scale, growth.base_outputs, growth.base_inputs)
        return math.sqrt(growth.out / growth.into) / (own / base)

    def build(self, model: nn.Module, scales: Mapping[str, RateScale] | None = None) -> Optimizer:
        pieces = parameter_pieces(model)
        rules: list[tuple[Group, Rule]] = []
        for group in make_groups(model, self, scales):
            members = members_of(model, group)
            if group.role is Role.MATRIX:
                rules.append((group, MuonRule(members, pieces, self)))
            else:
                rules.append((group, AdamRule(members, (self.beta1, self.beta2), self.eps)))
        return Optimizer(model, rules)

    def momentum_at(self, progress: float) -> float:
        """Momentum at a progress in [0, 1]."""
        share = 1.0 if self.momentum_warmup == 0 else min(1.0, max(0.0, progress) / self.momentum_warmup)
        return self.first_momentum + share * (self.momentum - self.first_momentum)


@dataclass(frozen=True)
class _Piece:
    """A stack of equal matrices inside one parameter."""

    name: str
    first_row: int
    rows: int
    columns: int
    count: int

    def of(self, tensor: Tensor) -> Tensor:
        """The piece of a tensor of the parameter's shape, as (count, rows, columns) without copying."""
        stack = tensor.reshape(self.count, -1, self.columns)
        return stack[:, self.first_row : self.first_row + self.rows]


class MuonRule(Rule):
    """Muon over matrices and stacks of them; those of equal shape iterate in batches."""

    elementwise = ("momentum",)

    def __init__(self, parameters: Mapping[str, Tensor], pieces: Mapping[str, tuple[int, ...]], config: Config) -> None:
        super().__init__()
        self.config = config
        self._steps = coefficients(config.coefficients, config.steps)
        self._pieces: dict[str, list[_Piece]] = {}
        self._rows: dict[str, tuple[int, ...]] = {}
        for name, parameter in parameters.items():
            assert parameter.ndim >= 2, f"{name} has the role of a matrix and {parameter.ndim} dimensions"
            wide = torch.promote_types(parameter.dtype, torch.float32)
            self.state[name] = {"momentum": torch.zeros_like(parameter, dtype=wide, requires_grad=False)}
            self._pieces[name] = _cut(name, parameter, pieces.get(name))
            self._rows[name] = tuple(piece.rows for piece in self._pieces[name])
            if config.normalise_neurons:
                squares = torch.zeros(parameter.shape[:-1], dtype=wide, device=parameter.device)
                self.state[name]["squares"] = squares

    def update(
        self,
        names: Sequence[str],
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        group: Group,
        lr: float,
        progress: float,
    ) -> None:
        mu = self.config.momentum_at(progress)
        weight_of = dict(zip(names, weights, strict=True))
        gradient_of = dict(zip(names, gradients, strict=True))
        for chunk in self._chunks(weight_of):
            pieces = [self._pieces[name] for name in chunk]
            updates: dict[str, Tensor] = {}
            if not (in_one_pass := self._in_one_pass([gradient_of[name] for name in chunk])):
                updates = {name: self._stepped(name, gradient_of[name], mu) for name in chunk}
            for batch in zip(*pieces, strict=True):
                if in_one_pass:
                    o_NRC = self._orthogonal_in_one_pass(batch, gradient_of, mu)
                else:
                    o_NRC = self._orthogonal(batch, updates)
                for piece, part_NRC in zip(batch, o_NRC.split(batch[0].count), strict=True):
                    self._apply(piece, weight_of[piece.name], part_NRC, group, lr)

    def _chunks(self, weights: Mapping[str, Tensor]) -> list[list[str]]:
        """Parameters cut alike, few enough at a time to stay in the cache between the passes over them."""
        alike: dict[tuple[object, ...], list[str]] = {}
        for name, weight in weights.items():
            alike.setdefault((weight.shape, weight.dtype, *self._rows[name]), []).append(name)
        chunks = []
        for names in alike.values():
            first = weights[names[0]]
            limit = _CHUNK_CPU if first.device.type == "cpu" else _CHUNK
            count = max(1, limit // first.numel())
            chunks += [names[start : start + count] for start in range(0, len(names), count)]
        return chunks

    def _in_one_pass(self, gradients: Sequence[Tensor]) -> bool:
        """Whether the kernel steps the momentum and makes the updates of these gradients."""
        whole = all(one.is_contiguous() for one in gradients)
        return whole and not self.config.equalise_rows and served(*gradients)

    def _orthogonal_in_one_pass(self, batch: Sequence[_Piece], gradients: Mapping[str, Tensor], mu: float) -> Tensor:
        """Steps the momentum of pieces of one shape; their updates, orthogonalised, in one stack."""
        stack_NRC = self._stack(batch, gradients[batch[0].name])
        for piece, part_NRC in zip(batch, stack_NRC.split(batch[0].count), strict=True):
            gradient_NRC, momentum_NRC = piece.of(gradients[piece.name]), piece.of(self.state[piece.name]["momentum"])
            direction(gradient_NRC, momentum_NRC, part_NRC, mu, self.config.nesterov)
        return iterate(stack_NRC, self._steps)

    def _stepped(self, name: str, gradient: Tensor, mu: float) -> Tensor:
        """Steps the momentum of a parameter; its update."""
        momentum = self.state[name]["momentum"].lerp_(gradient, 1.0 - mu)
        return gradient.lerp(momentum, mu) if self.config.nesterov else momentum

    def _orthogonal(self, batch: Sequence[_Piece], updates: Mapping[str, Tensor]) -> Tensor:
        """The updates of pieces of one shape, orthogonalised, in one stack."""
        stack_NRC = self._stack(batch, updates[batch[0].name])
        for piece, part_NRC in zip(batch, stack_NRC.split(batch[0].count), strict=True):
            u_NRC = piece.of(updates[piece.name])
            if self.config.equalise_rows:
                u_NRC = u_NRC / torch.linalg.vector_norm(u_NRC, dim=-1, keepdim=True).clamp_min(_TINY)
            part_NRC.copy_(u_NRC)
        return orthogonalise(stack_NRC, self._steps)

    def _stack(self, batch: Sequence[_Piece], sample: Tensor) -> Tensor:
        shape = batch[0]
        return sample.new_empty((len(batch) * shape.count, shape.rows, shape.columns), dtype=self._dtype(sample))

    def _dtype(self, sample: Tensor) -> torch.dtype:
        if sample.dtype == torch.float64:
            return torch.float64
        if self.config.arithmetic == "auto":
            return torch.bfloat16 if fast_bfloat16(sample.device.type) else torch.float32
        return torch.bfloat16 if self.config.arithmetic == "bfloat16" else torch.float32

    def _apply(self, piece: _Piece, weight: Tensor, o_NRC: Tensor, group: Group, lr: float) -> None:
        w_NRC, kept = piece.of(weight), 1.0 - lr * group.weight_decay
        rate = lr * update_scale(self.config.scale, piece.rows, piece.columns)
        if self.config.normalise_neurons:
            o_NRC = self._even(piece, o_NRC.to(weight.dtype))
        if self.config.cautious and group.weight_decay:
            w_NRC.mul_(torch.where(o_NRC * w_NRC >= 0, kept, 1.0))
            kept = 1.0
        if served(w_NRC):
            descend(w_NRC, o_NRC.contiguous(), kept, rate)
        else:
            w_NRC.mul_(kept).sub_(o_NRC, alpha=rate)

    def _even(self, piece: _Piece, o_NRC: Tensor) -> Tensor:
        squares = self.state[piece.name]["squares"]
        squares_NR1 = squares.reshape(piece.count, -1, 1)[:, piece.first_row : piece.first_row + piece.rows]
        squares_NR1.lerp_(o_NRC.square().mean(dim=-1, keepdim=True), 1.0 - self.config.neuron_beta)
        even_NRC = o_NRC / (squares_NR1.sqrt() + 1e-10)
        before = torch.linalg.vector_norm(o_NRC, dim=(-2, -1), keepdim=True)
        return even_NRC * (before / torch.linalg.vector_norm(even_NRC, dim=(-2, -1), keepdim=True).clamp_min(_TINY))


def update_scale(rule: ScaleRule, rows: int, columns: int) -> float:
    """Factor on the orthogonalised update of a matrix of `rows` outputs and `columns` inputs."""
    if rule == "original":
        return math.sqrt(max(1.0, rows / columns))
    return math.sqrt(rows / columns) if rule == "spectral" else 0.2 * math.sqrt(max(rows, columns))


def _cut(name: str, parameter: Tensor, rows: tuple[int, ...] | None) -> list[_Piece]:
    count, height, columns = math.prod(parameter.shape[:-2]), parameter.shape[-2], parameter.shape[-1]
    sizes = rows or (height,)
    assert sum(sizes) == height, f"{name}: pieces of {sizes} rows do not make {height}"
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [_Piece(name, start, size, columns, count) for start, size in zip(starts, sizes, strict=True)]
