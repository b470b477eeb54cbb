"""Test-time training: the state is a small model that learns from every token by gradient descent.

Per head, `f(x) = x + LN(Z(x))` with `Z = x W + b` (`ttt_linear`) or `Z = gelu(x W1 + b1) W2 + b2` (`ttt_mlp`)
fits k to v: `W_i = W0 - tok_i sum_(j<=i) lr_j grad l_j(W0)` inside a mini-batch, W0 being the weights at its
start; `tok_i = max(0, 1/(i+1) + learned_i)`, `lr_j = base sigmoid(theta . x_j + c) / K`; `o_i = f(q_i; W_i)`,
output `(LN(o) [.* gelu(x W_g)]) W_out`. q and k are turned by their place in the mini-batch. The initial
inner weights are learned, and the outer gradient flows through the inner steps. Sun et al. 2024. Its state is
the inner weights at the start of the mini-batch, the sums of its rated gradients, and the number of tokens
seen; documents inside a sequence are not kept apart.
Shape key: B batch, T time, D width, H heads, K head width, F inner hidden width, M places of a mini-batch.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.config import Source
from fairway.model.heads import check_heads
from fairway.model.linear import Linear
from fairway.model.parts import NO_CONTEXT, Context, Mixer, MixerConfig, Role, Site, State, widened
from fairway.ops.timescale import rotated
from fairway.ops.ttt.fastest import ttt
from fairway.ops.ttt.inner import Carried

KINDS: tuple[Literal["ttt_linear", "ttt_mlp"], ...] = ("ttt_linear", "ttt_mlp")
SUMMARIES = {
    "ttt_linear": "Test-time training: the state is a linear model that learns from every token",
    "ttt_mlp": "Test-time training: the state is a two-layer network that learns from every token",
}
SOURCE = Source("Sun et al.", 2024, "arXiv:2407.04620")
EPS = 1e-6


class Config(MixerConfig):
    """Settings of test-time training layers."""

    heads: int = Field(default=4, ge=1)
    mini_batch: int = Field(default=16, ge=1)
    """Tokens whose gradients are all taken at the same inner weights."""
    base_rate: float | None = Field(default=None, gt=0)
    """Largest inner rate, times the head width; if not given, 1 for `ttt_linear`, 0.1 for `ttt_mlp`."""
    gate: bool = False
    """Multiply the output by `gelu(x W_g)`."""
    base: float = Field(default=10_000.0, gt=1)
    """Base of the rotation."""

    def build(self, width: int, site: Site = Site()) -> Mixer:  # noqa: ARG002, B008
        check_heads(self.heads, width, "the width", even=True)
        return TestTimeTraining(width, self)


class TestTimeTraining(Mixer):
    """`forward(x_BTD, state, context) -> (y_BTD, (*weights, *sums, seen_B))`."""

    __test__ = False

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.head_width = width // config.heads
        self.base_rate = config.base_rate or (1.0 if config.kind == "ttt_linear" else 0.1)
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.gate = Linear(width, width) if config.gate else None
        self.output = Linear(width, width, gain=0.0)
        inner = self.head_width if config.kind == "ttt_linear" else 4 * self.head_width
        heads = config.heads
        self.inner_HKF = nn.Parameter(torch.empty(heads, self.head_width, inner))
        self.inner_bias_H1F = nn.Parameter(torch.empty(heads, 1, inner))
        mlp = config.kind == "ttt_mlp"
        self.second_HFK = nn.Parameter(torch.empty(heads, inner, self.head_width)) if mlp else None
        self.second_bias_H1K = nn.Parameter(torch.empty(heads, 1, self.head_width)) if mlp else None
        self.inner_gain_HK = nn.Parameter(torch.empty(heads, self.head_width))
        self.inner_shift_HK = nn.Parameter(torch.empty(heads, self.head_width))
        self.rate_HD = nn.Parameter(torch.empty(heads, width))
        self.rate_bias_H = nn.Parameter(torch.empty(heads))
        self.token_rate_M = nn.Parameter(torch.empty(config.mini_batch))
        self.gain_D = nn.Parameter(torch.empty(width))
        self.shift_D = nn.Parameter(torch.empty(width))

    def roles(self) -> dict[str, Role]:
        return dict.fromkeys((name for name, _ in self.named_parameters(recurse=False)), Role.VECTOR)

    def init_weights(self, generator: torch.Generator) -> None:
        for weight in (self.inner_HKF, self.second_HFK, self.rate_HD):
            if weight is not None:
                weight.normal_(0.0, 0.02, generator=generator)
        for bias in (self.inner_bias_H1F, self.second_bias_H1K, self.rate_bias_H, self.token_rate_M):
            if bias is not None:
                bias.zero_()
        for gain, shift in ((self.inner_gain_HK, self.inner_shift_HK), (self.gain_D, self.shift_D)):
            gain.fill_(1.0)
            shift.zero_()

    def empty_state(self, batch: int) -> State:
        first = (self.inner_HKF, self.inner_bias_H1F, self.second_HFK, self.second_bias_H1K)
        weights = tuple(widened(w).expand(batch, *w.shape).clone() for w in first if w is not None)
        seen_B = torch.zeros(batch, dtype=torch.int64, device=self.inner_HKF.device)
        return *weights, *(torch.zeros_like(weight) for weight in weights), seen_B

    def flops(self, context: int) -> float:
        seen = (min(self.config.mini_batch, context) + 1) / 2
        inner = self.inner_HKF.shape[2]
        layer = 2.0 * seen * (self.head_width + inner) + 6.0 * self.head_width * inner
        per_head = layer if self.second_HFK is None else 2 * layer + 2.0 * self.head_width * inner
        return super().flops(context) + self.config.heads * per_head + 2.0 * self.rate_HD.numel()

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        context: Context = NO_CONTEXT,  # noqa: ARG002
    ) -> tuple[Tensor, State]:
        batch, time, _ = x_BTD.shape
        fresh = state is None or batch == 0
        state = self.empty_state(batch) if state is None else state
        place_B = state[-1] % self.config.mini_batch
        places = [0] if fresh else place_B.unique().tolist()
        q_BTHK, k_BTHK, v_BTHK, rate_BTH = self._inputs(x_BTD, place_B)
        if len(places) == 1:
            o_BTHK, inner = self._learn((q_BTHK, k_BTHK, v_BTHK, rate_BTH), state[:-1], places[0])
        else:
            o_BTHK, inner = self._learn_apart((q_BTHK, k_BTHK, v_BTHK, rate_BTH), state[:-1], place_B, places)
        normed = functional.layer_norm(
            o_BTHK.flatten(2), (x_BTD.shape[2],), widened(self.gain_D), widened(self.shift_D), EPS
        ).to(x_BTD.dtype)
        if self.gate is not None:
            normed = normed * functional.gelu(self.gate(x_BTD), approximate="tanh")
        return self.output(normed), (*inner, state[-1] + time)

    def _inputs(self, x_BTD: Tensor, place_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values, q and k turned, and the inner rate of each token, in full precision."""
        step_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        place_BT = (place_B.unsqueeze(1) + step_T) % self.config.mini_batch
        even = torch.arange(0, self.head_width, 2, dtype=torch.float64, device=x_BTD.device)
        frequencies = self.config.base ** (-even / self.head_width)
        heads = (self.config.heads, self.head_width)
        q, k, v = (widened(part(x_BTD)).unflatten(-1, heads) for part in (self.query, self.key, self.value))
        logit_BTH = widened(functional.linear(x_BTD, self.rate_HD)) + widened(self.rate_bias_H)
        rate_BTH = self.base_rate / self.head_width * logit_BTH.sigmoid()
        return rotated(q, place_BT, frequencies), rotated(k, place_BT, frequencies), v, rate_BTH

    def _learn(self, inputs: tuple[Tensor, ...], state: State, place: int) -> tuple[Tensor, State]:
        """Outputs (B, T, H, K) and the inner state of sequences at the same place of a mini-batch."""
        count = len(state) // 2
        index_M = torch.arange(1, self.config.mini_batch + 1, device=inputs[0].device, dtype=inputs[0].dtype)
        token_rate_M = (1 / index_M + widened(self.token_rate_M)).clamp_min(0.0)
        q, k, v, rate = inputs
        gain, shift = widened(self.inner_gain_HK), widened(self.inner_shift_HK)
        output, after = ttt(q, k, v, rate, token_rate_M, gain, shift, Carried(state[:count], state[count:], place))
        return output, (*after.weights, *after.sums)

    def _learn_apart(
        self, inputs: tuple[Tensor, ...], state: State, place_B: Tensor, places: list[int]
    ) -> tuple[Tensor, State]:
        """The same for sequences at different places: each place by itself."""
        rows = [(place_B == place).nonzero().squeeze(1) for place in places]
        results = [
            self._learn(tuple(x[row] for x in inputs), tuple(x[row] for x in state), place)
            for row, place in zip(rows, places, strict=True)
        ]
        order = torch.cat(rows).argsort()
        output = torch.cat([result for result, _ in results])[order]
        return output, tuple(torch.cat(parts)[order] for parts in zip(*(after for _, after in results), strict=True))
