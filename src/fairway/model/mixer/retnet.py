"""Retention: linear attention with rotated queries and keys and a fixed decay for each head.

`S_t = gamma_h S_(t-1) + k_t^T v_t`, `o_t = q_t S_t`, `gamma_h = 1 - 2^(-5-h)`; q and k are turned by their
positions, q scaled by K^(-1/2), v twice as wide as the model; output `(groupnorm(o) .* silu(x W_g)) W_out`,
each head normalised by itself. Sun et al. 2023. Its state is S and the number of tokens of the document seen.
Shape key: B batch, T time, D width, H heads, K key width, V value width.
"""

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fairway.core.config import Source
from fairway.model.heads import check_heads
from fairway.model.linear import Linear
from fairway.model.parts import NO_CONTEXT, Context, Mixer, MixerConfig, Site, State, widened
from fairway.ops.chunking import chunked_flops
from fairway.ops.gate.apart import gate_apart
from fairway.ops.retention.fastest import retention
from fairway.ops.timescale import rotated

SOURCE = Source("Sun et al.", 2023, "arXiv:2307.08621")
CHUNK = 64
EPS = 1e-6


class Config(MixerConfig):
    """Settings of retention."""

    heads: int = Field(default=4, ge=1, le=40)
    value_ratio: int = Field(default=2, ge=1)
    """Width of all values over the model's width."""
    base: float = Field(default=10_000.0, gt=1)
    """The slowest pair of channels turns once in `2 pi base` tokens."""

    def build(self, width: int, site: Site = Site()) -> Mixer:  # noqa: ARG002, B008
        check_heads(self.heads, width, "the width", even=True)
        return RetNet(width, self)

    def isolates_documents(self) -> bool:
        return True


class RetNet(Mixer):
    """`forward(x_BTD, state, context) -> (y_BTD, (S_BHKV, seen_B))`."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.key_width = width // config.heads
        self.value_width = config.value_ratio * width // config.heads
        values = config.value_ratio * width
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, values)
        self.gate = Linear(width, values)
        self.output = Linear(values, width, gain=0.0)

    def empty_state(self, batch: int) -> State:
        like = widened(self.key.weight)
        memory = like.new_zeros(batch, self.config.heads, self.key_width, self.value_width)
        return memory, torch.zeros(batch, dtype=torch.int64, device=like.device)

    def flops(self, context: int) -> float:
        return super().flops(context) + self.config.heads * chunked_flops(
            context, CHUNK, self.key_width, self.value_width
        )

    def forward(self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        batch, time, _ = x_BTD.shape
        memory, seen_B = state or self.empty_state(batch)
        position_BT = _places(seen_B, time, context.starts_BT)
        heads = self.config.heads
        q_BTHK = self._turned(self.query(x_BTD), position_BT) / math.sqrt(self.key_width)
        k_BTHK = self._turned(self.key(x_BTD), position_BT)
        v_BTHV = self.value(x_BTD).unflatten(-1, (heads, self.value_width))
        head_H = torch.arange(heads, device=x_BTD.device, dtype=memory.dtype)
        log_decay_H = torch.log1p(-torch.exp2(-5 - head_H))
        o_BTHV, memory = retention(q_BTHK, k_BTHK, v_BTHV, log_decay_H, memory, context.starts_BT, CHUNK)
        o_BTHV = functional.layer_norm(widened(o_BTHV), (self.value_width,), eps=EPS).to(x_BTD.dtype)
        return self.output(gate_apart(self.gate(x_BTD), o_BTHV.flatten(2), "silu")), (
            memory,
            position_BT[:, -1] + 1 if time else seen_B,
        )

    def _turned(self, x_BTD: Tensor, position_BT: Tensor) -> Tensor:
        exponent = torch.linspace(0, 1, self.key_width // 2, dtype=torch.float64, device=x_BTD.device)
        return rotated(
            x_BTD.unflatten(-1, (self.config.heads, self.key_width)), position_BT, self.config.base**-exponent
        )


def _places(seen_B: Tensor, time: int, starts_BT: Tensor | None) -> Tensor:
    """The place of each token in its document, from 0."""
    step_T = torch.arange(time, device=seen_B.device)
    carried_BT = seen_B[:, None] + step_T
    if starts_BT is None or time == 0:
        return carried_BT
    start_BT = torch.where(starts_BT, step_T, -1).cummax(1).values
    return torch.where(start_BT >= 0, step_T - start_BT, carried_BT)
