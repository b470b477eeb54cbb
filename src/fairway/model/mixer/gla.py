"""Gated linear attention: a decay for every key channel, chosen by the input through a low-rank gate.

`alpha_t = sigmoid(x W_1 W_2 + b)^(1/tau)`, `S_t = (alpha_t^T 1) .* S_(t-1) + k_t^T v_t`, `o_t = K^(-1/2) q_t
S_t`; keys are half as wide as the model; output `(rmsnorm(o) .* silu(x W_g)) W_out`, each head normalised by
itself. Yang et al. 2023. Its state is S.
Shape key: B batch, T time, D width, H heads, K key width, V value width, R rank of the gate.
"""

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.config import Source
from fairway.model.heads import check_heads
from fairway.model.linear import Linear
from fairway.model.parts import NO_CONTEXT, Context, Mixer, MixerConfig, Role, Site, State, widened
from fairway.ops.chunking import chunked_flops
from fairway.ops.gla.fastest import gla

SOURCE = Source("Yang et al.", 2023, "arXiv:2312.06635")
CHUNK = 64
EPS = 1e-5


class Config(MixerConfig):
    """Settings of gated linear attention."""

    heads: int = Field(default=4, ge=1)
    rank: int = Field(default=16, ge=1)
    """Rank of the map to decays."""
    temperature: float = Field(default=16.0, gt=0)
    """Divides the log decays: larger remembers longer."""

    def build(self, width: int, site: Site = Site()) -> Mixer:  # noqa: ARG002, B008
        check_heads(self.heads, width, "the width", even=True)
        return GatedLinearAttention(width, self)

    def isolates_documents(self) -> bool:
        return True


class GatedLinearAttention(Mixer):
    """`forward(x_BTD, state, context) -> (y_BTD, (S_BHKV,))`."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        keys = width // 2
        self.key_width, self.value_width = keys // config.heads, width // config.heads
        self.query = Linear(width, keys)
        self.key = Linear(width, keys)
        self.value = Linear(width, width)
        self.gate = Linear(width, width)
        self.decay_down = Linear(width, config.rank)
        self.decay_up = Linear(config.rank, keys)
        self.output = Linear(width, width, gain=0.0)
        self.decay_bias_X = nn.Parameter(torch.empty(keys))
        self.gain_V = nn.Parameter(torch.empty(self.value_width))

    def roles(self) -> dict[str, Role]:
        return {"decay_bias_X": Role.DECAY, "gain_V": Role.VECTOR}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        self.decay_bias_X.zero_()
        self.gain_V.fill_(1.0)

    def empty_state(self, batch: int) -> State:
        like = widened(self.decay_bias_X)
        return (like.new_zeros(batch, self.config.heads, self.key_width, self.value_width),)

    def flops(self, context: int) -> float:
        return super().flops(context) + self.config.heads * chunked_flops(
            context, CHUNK, self.key_width, self.value_width
        )

    def forward(self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        (memory,) = state or (None,)
        keys = (self.config.heads, self.key_width)
        decay_BTX = widened(self.decay_up(self.decay_down(x_BTD))) + widened(self.decay_bias_X)
        o_BTHV, memory = gla(
            self.query(x_BTD).unflatten(-1, keys) / math.sqrt(self.key_width),
            self.key(x_BTD).unflatten(-1, keys),
            self.value(x_BTD).unflatten(-1, (self.config.heads, self.value_width)),
            functional.logsigmoid(decay_BTX).unflatten(-1, keys) / self.config.temperature,
            memory,
            context.starts_BT,
            CHUNK,
        )
        normed = functional.rms_norm(widened(o_BTHV), (self.value_width,), widened(self.gain_V), EPS).to(x_BTD.dtype)
        return self.output(normed.flatten(2) * functional.silu(self.gate(x_BTD))), (memory,)
