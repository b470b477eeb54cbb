"""The delta rule: a memory that is read at each key and corrected towards its value, with or without a decay.

`S' = alpha_t S_(t-1)`, `S_t = S' + beta_t k_t^T (v_t - k_t S')`, `o_t = K^(-1/2) q_t S_t`, `beta = sigmoid(x
W_beta)`; q, k, v pass a causal convolution and SiLU, q and k have norm 1. `delta`: alpha = 1, output
`rmsnorm(o) W_out`. `gated_delta`: `alpha = exp(-exp(A_log) softplus(x W_alpha + b))`, output `(rmsnorm(o) .*
silu(x W_g)) W_out`. Yang et al. 2024. Its state is the last inputs of the convolution and S. Shape key: B
batch, T time, D width, H heads, K head width, F convolved features, P carried inputs of the convolution.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.config import Source
from fairway.model.heads import check_heads
from fairway.model.linear import Linear
from fairway.model.parts import NO_CONTEXT, Context, Mixer, MixerConfig, Role, Site, State, widened
from fairway.ops.chunking import chunk_size, chunked_flops
from fairway.ops.conv.fastest import causal_conv_silu
from fairway.ops.delta.fastest import delta
from fairway.ops.timescale import initial_step_bias

KINDS: tuple[Literal["delta", "gated_delta"], ...] = ("delta", "gated_delta")
SUMMARIES = {
    "delta": "The delta rule: a memory that is read at each key and corrected towards its value",
    "gated_delta": "The delta rule with a decay per head and an output gate",
}
SOURCES = {
    "delta": Source("Yang et al.", 2024, "arXiv:2406.06484"),
    "gated_delta": Source("Yang, Kautz & Hatamizadeh", 2024, "arXiv:2412.06464"),
}
CHUNK = 64
EPS = 1e-5


class Config(MixerConfig):
    """Settings of the delta rule."""

    heads: int = Field(default=4, ge=1)
    taps: int = Field(default=4, ge=1)
    """Tokens the convolutions see."""

    def build(self, width: int, site: Site = Site()) -> Mixer:  # noqa: ARG002, B008
        check_heads(self.heads, width, "the width")
        return DeltaRule(width, self)

    def isolates_documents(self) -> bool:
        return True


class DeltaRule(Mixer):
    """`forward(x_BTD, state, context) -> (y_BTD, (inputs_BPF, S_BHKK))`."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.gated = config.kind == "gated_delta"
        self.width, self.head_width = width, width // config.heads
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.beta = Linear(width, config.heads, role=Role.VECTOR)
        self.output = Linear(width, width, gain=0.0)
        self.conv_FK = nn.Parameter(torch.empty(3 * width, config.taps))
        self.gain_K = nn.Parameter(torch.empty(self.head_width))
        self.gate = Linear(width, width) if self.gated else None
        self.step = Linear(width, config.heads, role=Role.VECTOR) if self.gated else None
        self.step_bias_H = nn.Parameter(torch.empty(config.heads)) if self.gated else None
        self.A_log_H = nn.Parameter(torch.empty(config.heads)) if self.gated else None

    def roles(self) -> dict[str, Role]:
        vectors = dict.fromkeys(("conv_FK", "gain_K"), Role.VECTOR)
        return vectors | (dict.fromkeys(("step_bias_H", "A_log_H"), Role.DECAY) if self.gated else {})

    def init_weights(self, generator: torch.Generator) -> None:
        bound = 1 / math.sqrt(self.config.taps)
        self.conv_FK.uniform_(-bound, bound, generator=generator)
        self.gain_K.fill_(1.0)
        if self.step_bias_H is not None and self.A_log_H is not None:
            self.step_bias_H.copy_(initial_step_bias(self.config.heads, generator))
            self.A_log_H.uniform_(1.0, 16.0, generator=generator).log_()

    def empty_state(self, batch: int) -> State:
        like = widened(self.gain_K)
        conv = like.new_zeros(batch, self.config.taps - 1, 3 * self.width)
        return conv, like.new_zeros(batch, self.config.heads, self.head_width, self.head_width)

    def flops(self, context: int) -> float:
        width = self.head_width
        seen = (chunk_size(context, CHUNK) + 1) / 2
        solving = 2.0 * seen * 3 * width + 2.0 * width * width
        mixing = self.config.heads * (chunked_flops(context, CHUNK, width, width) + solving)
        return super().flops(context) + 6.0 * self.config.taps * self.width + mixing

    def forward(self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        conv_state, memory = state or (None, None)
        joint_BTF = torch.cat((self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)), -1)
        joint_BTF, conv_state = causal_conv_silu(joint_BTF, self.conv_FK, None, conv_state, context.starts_BT)
        heads = (self.config.heads, self.head_width)
        q_BTHK, k_BTHK, v_BTHK = (part.unflatten(-1, heads) for part in joint_BTF.chunk(3, -1))
        o_BTHK, memory = delta(
            (functional.normalize(widened(q_BTHK), dim=-1) / math.sqrt(self.head_width)).to(v_BTHK.dtype),
            functional.normalize(widened(k_BTHK), dim=-1).to(v_BTHK.dtype),
            v_BTHK,
            widened(self.beta(x_BTD)).sigmoid(),
            self._log_decay(x_BTD),
            memory,
            context.starts_BT,
            CHUNK,
        )
        normed_BTHK = functional.rms_norm(widened(o_BTHK), (self.head_width,), widened(self.gain_K), EPS)
        y_BTD = normed_BTHK.flatten(2).to(x_BTD.dtype)
        if self.gate is not None:
            y_BTD = y_BTD * functional.silu(self.gate(x_BTD))
        return self.output(y_BTD), (conv_state, memory)

    def _log_decay(self, x_BTD: Tensor) -> Tensor | None:
        if self.step is None or self.step_bias_H is None or self.A_log_H is None:
            return None
        step_BTH = functional.softplus(widened(self.step(x_BTD)) + widened(self.step_bias_H))
        return -widened(self.A_log_H).exp() * step_BTH
