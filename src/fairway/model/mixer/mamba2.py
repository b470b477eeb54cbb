"""Mamba-2: a state space with one decay per head, computed chunk by chunk.

`(z, u, B, C, r) = x W_in`; `(u, B, C) = silu(conv(u, B, C))`; `Delta = softplus(r + b)`; per head `h_t =
exp(-Delta_t exp(A_log)) h_(t-1) + Delta_t B_t^T u_t`, `y_t = C_t h_t + D u_t`; output `norm(y .* silu(z))
W_out`. Dao & Gu 2024. Its state is the last inputs of the convolution and h. Shape key: B batch, T time, D
width, E inner width, H heads, P head width, G groups, N state width, F convolved features, K taps.
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
from fairway.ops.conv.fastest import causal_conv_silu
from fairway.ops.gate.apart import gate_apart
from fairway.ops.ssd.fastest import ssd
from fairway.ops.timescale import initial_step_bias

SOURCE = Source("Dao & Gu", 2024, "arXiv:2405.21060")
CHUNK = 64
EPS = 1e-5


class Config(MixerConfig):
    """Settings of Mamba-2."""

    expansion: int = Field(default=2, ge=1)
    """Inner width over model width."""
    heads: int = Field(default=8, ge=1)
    groups: int = Field(default=1, ge=1)
    """Sets of B and C; each serves an equal share of the heads."""
    states: int = Field(default=64, ge=1)
    """State width of each head."""
    taps: int = Field(default=4, ge=1)
    """Tokens the convolution sees."""

    def build(self, width: int, site: Site = Site()) -> Mixer:  # noqa: ARG002, B008
        inner = self.expansion * width
        check_heads(self.heads, inner, "the inner width")
        if self.heads % self.groups:
            raise ValueError(f"{self.heads} heads cannot share {self.groups} groups evenly")
        return Mamba2(width, self)

    def isolates_documents(self) -> bool:
        return True


class Mamba2(Mixer):
    """`forward(x_BTD, state, context) -> (y_BTD, (inputs_BPF, h_BHNP))`; the first has K - 1 inputs."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inner = inner = config.expansion * width
        self.shared = config.groups * config.states
        self.convolved = inner + 2 * self.shared
        self.input = Linear(width, inner + self.convolved + config.heads)
        self.output = Linear(inner, width, gain=0.0)
        self.conv_FK = nn.Parameter(torch.empty(self.convolved, config.taps))
        self.conv_bias_F = nn.Parameter(torch.empty(self.convolved))
        self.step_bias_H = nn.Parameter(torch.empty(config.heads))
        self.A_log_H = nn.Parameter(torch.empty(config.heads))
        self.skip_H = nn.Parameter(torch.empty(config.heads))
        self.gain_E = nn.Parameter(torch.empty(inner))

    def roles(self) -> dict[str, Role]:
        vectors = dict.fromkeys(("conv_FK", "conv_bias_F", "skip_H", "gain_E"), Role.VECTOR)
        return vectors | dict.fromkeys(("step_bias_H", "A_log_H"), Role.DECAY)

    def init_weights(self, generator: torch.Generator) -> None:
        bound = 1 / math.sqrt(self.config.taps)
        self.conv_FK.uniform_(-bound, bound, generator=generator)
        self.conv_bias_F.zero_()
        self.step_bias_H.copy_(initial_step_bias(self.config.heads, generator))
        self.A_log_H.uniform_(1.0, 16.0, generator=generator).log_()
        self.skip_H.fill_(1.0)
        self.gain_E.fill_(1.0)

    def empty_state(self, batch: int) -> State:
        config, like = self.config, widened(self.A_log_H)
        conv = like.new_zeros(batch, config.taps - 1, self.convolved)
        return conv, like.new_zeros(batch, config.heads, config.states, self.inner // config.heads)

    def flops(self, context: int) -> float:
        config = self.config
        head_width = self.inner // config.heads
        mixing = config.heads * chunked_flops(context, CHUNK, config.states, head_width)
        return super().flops(context) + 2.0 * config.taps * self.convolved + mixing

    def forward(self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        config = self.config
        conv_state, scan_state = state or (None, None)
        starts_BT = context.starts_BT
        z_BTE, mixed_BTF, step_BTH = self.input(x_BTD).split((self.inner, self.convolved, config.heads), -1)
        mixed_BTF, conv_state = causal_conv_silu(mixed_BTF, self.conv_FK, self.conv_bias_F, conv_state, starts_BT)
        u_BTE, B_BTX, C_BTX = mixed_BTF.split((self.inner, self.shared, self.shared), -1)
        y_BTHP, scan_state = ssd(
            u_BTE.unflatten(-1, (config.heads, self.inner // config.heads)),
            functional.softplus(widened(step_BTH) + widened(self.step_bias_H)),
            -widened(self.A_log_H).exp(),
            B_BTX.unflatten(-1, (config.groups, config.states)),
            C_BTX.unflatten(-1, (config.groups, config.states)),
            self.skip_H,
            scan_state,
            starts_BT,
            CHUNK,
        )
        return self.output(self._gated_norm(y_BTHP.flatten(2), z_BTE)), (conv_state, scan_state)

    def _gated_norm(self, y_BTE: Tensor, z_BTE: Tensor) -> Tensor:
        """RMSNorm of `y .* silu(z)`, over the heads of each group by themselves."""
        gated = gate_apart(widened(z_BTE), widened(y_BTE), "silu")
        share = self.inner // self.config.groups
        normed = functional.rms_norm(gated.unflatten(-1, (self.config.groups, share)), (share,), eps=EPS)
        return (normed.flatten(-2) * widened(self.gain_E)).to(y_BTE.dtype)
