"""Mamba: a selective state space with one decay per channel and state, after a causal convolution.

`(u, z) = x W_in`; `u = silu(conv(u))`; `(r, B, C) = u W_sel`; `Delta = softplus(r W_Delta + b)`; `A =
-exp(A_log)`; `h_t = exp(Delta_t A) .* h_(t-1) + Bbar_t u_t`; `y_t = <C_t, h_t> + D u_t`; output `(y .*
silu(z)) W_out`. Gu & Dao 2023. Its state is the last inputs of the convolution and h. Shape key: B batch, T
time, D width, E inner width, K taps, N state width, R rank.
"""

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.config import Source
from fairway.model.linear import Linear
from fairway.model.parts import NO_CONTEXT, Context, Mixer, MixerConfig, Role, Site, State, widened
from fairway.ops.conv.fastest import causal_conv_silu
from fairway.ops.gate.apart import gate_apart
from fairway.ops.selective_scan.fastest import selective_scan
from fairway.ops.selective_scan.naive import Discretisation
from fairway.ops.timescale import initial_step_bias

SOURCE = Source("Gu & Dao", 2023, "arXiv:2312.00752")


class Config(MixerConfig):
    """Settings of Mamba."""

    expansion: int = Field(default=2, ge=1)
    """Inner width over model width."""
    inner: int | None = Field(default=None, ge=1)
    """Inner width; `expansion` times the model's width if not given."""
    states: int = Field(default=16, ge=1)
    """State width of each inner channel."""
    taps: int = Field(default=4, ge=1)
    """Tokens the convolution sees."""
    rank: int | None = Field(default=None, ge=1)
    """Rank of the map to step sizes; a sixteenth of the width, rounded up, if not given."""
    discretisation: Discretisation = "euler"
    """How inputs enter the state: `euler` as the published code, `zoh` (zero-order hold) as the paper."""

    def build(self, width: int, site: Site = Site()) -> Mixer:  # noqa: ARG002, B008
        return Mamba(width, self)

    def isolates_documents(self) -> bool:
        return True


class Mamba(Mixer):
    """`forward(x_BTD, state, context) -> (y_BTD, (inputs_BPE, h_BEN))`, P = K - 1."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inner = inner = config.inner or config.expansion * width
        self.rank = config.rank or math.ceil(width / 16)
        self.input = Linear(width, 2 * inner)
        self.select = Linear(inner, self.rank + 2 * config.states)
        self.output = Linear(inner, width, gain=0.0)
        self.conv_EK = nn.Parameter(torch.empty(inner, config.taps))
        self.conv_bias_E = nn.Parameter(torch.empty(inner))
        self.step_ER = nn.Parameter(torch.empty(inner, self.rank))
        self.step_bias_E = nn.Parameter(torch.empty(inner))
        self.A_log_EN = nn.Parameter(torch.empty(inner, config.states))
        self.skip_E = nn.Parameter(torch.empty(inner))

    def roles(self) -> dict[str, Role]:
        vectors = dict.fromkeys(("conv_EK", "conv_bias_E", "step_ER", "skip_E"), Role.VECTOR)
        return vectors | dict.fromkeys(("step_bias_E", "A_log_EN"), Role.DECAY)

    def init_weights(self, generator: torch.Generator) -> None:
        bound = 1 / math.sqrt(self.config.taps)
        self.conv_EK.uniform_(-bound, bound, generator=generator)
        self.conv_bias_E.zero_()
        bound = 1 / math.sqrt(self.rank)
        self.step_ER.uniform_(-bound, bound, generator=generator)
        self.step_bias_E.copy_(initial_step_bias(self.inner, generator))
        self.A_log_EN.copy_(torch.arange(1, self.config.states + 1, dtype=torch.float64).log().expand_as(self.A_log_EN))
        self.skip_E.fill_(1.0)

    def empty_state(self, batch: int) -> State:
        like = widened(self.A_log_EN)
        conv = like.new_zeros(batch, self.config.taps - 1, self.inner)
        return conv, like.new_zeros(batch, self.inner, self.config.states)

    def flops(self, context: int) -> float:
        per_channel = 2.0 * self.config.taps + 2.0 * self.rank + 6.0 * self.config.states
        return super().flops(context) + per_channel * self.inner

    def forward(self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        conv_state, scan_state = state or (None, None)
        starts_BT = context.starts_BT
        u_BTE, z_BTE = self.input(x_BTD).chunk(2, -1)
        u_BTE, conv_state = causal_conv_silu(u_BTE, self.conv_EK, self.conv_bias_E, conv_state, starts_BT)
        states = self.config.states
        low_BTR, B_BTN, C_BTN = self.select(u_BTE).split((self.rank, states, states), -1)
        step_BTE = widened(functional.linear(low_BTR, self.step_ER)) + widened(self.step_bias_E)
        y_BTE, scan_state = selective_scan(
            u_BTE,
            functional.softplus(step_BTE),
            -widened(self.A_log_EN).exp(),
            B_BTN,
            C_BTN,
            self.skip_E,
            scan_state,
            starts_BT,
            self.config.discretisation,
        )
        return self.output(gate_apart(z_BTE, y_BTE, "silu")), (conv_state, scan_state)
