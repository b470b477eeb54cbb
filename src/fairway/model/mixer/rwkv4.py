"""RWKV-4 time mixing: a weighted average of values, decayed per channel, with a bonus for the current token.

Each of r, k, v sees `mu .* x_t + (1 - mu) .* x_(t-1)`. `wkv_t = (sum_(i<t) e^(-(t-1-i) w + k_i) v_i + e^(u +
k_t) v_t) / (the same with v = 1)`, `w = exp(w_raw)`; output `(sigmoid(r) .* wkv) W_out`. Peng et al. 2023.
Its state is the last input, and the numerator and denominator over e^maximum. Shape key: B batch, T time, D
width.
"""

import math

import torch
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.linear import Linear
from fairway.model.parts import NO_CONTEXT, Context, Mixer, MixerConfig, Role, Site, State, widened
from fairway.ops.conv.shift import previous_token
from fairway.ops.wkv4.fastest import wkv4
from fairway.ops.wkv4.naive import empty_triple

SOURCE = Source("Peng et al.", 2023, "arXiv:2305.13048")


class Config(MixerConfig):
    """Settings of RWKV-4 time mixing; it has none."""

    def build(self, width: int, site: Site = Site()) -> Mixer:  # noqa: B008
        return Rwkv4(width, site)

    def isolates_documents(self) -> bool:
        return True


class Rwkv4(Mixer):
    """`forward(x_BTD, state, context) -> (y_BTD, (last_B1D, numerator_BD, denominator_BD, maximum_BD))`."""

    def __init__(self, width: int, site: Site) -> None:
        super().__init__()
        self.width = width
        self.site = site
        self.receptance = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.output = Linear(width, width, gain=0.0)
        self.share_receptance_D = nn.Parameter(torch.empty(width))
        self.share_key_D = nn.Parameter(torch.empty(width))
        self.share_value_D = nn.Parameter(torch.empty(width))
        self.w_raw_D = nn.Parameter(torch.empty(width))
        self.bonus_D = nn.Parameter(torch.empty(width))

    def roles(self) -> dict[str, Role]:
        shares = dict.fromkeys(("share_receptance_D", "share_key_D", "share_value_D", "bonus_D"), Role.VECTOR)
        return shares | {"w_raw_D": Role.DECAY}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        rising = self.site.layer / max(1, self.site.layers - 1)
        falling = 1 - self.site.layer / self.site.layers
        channel_D = torch.arange(self.width, dtype=torch.float64)
        place_D = channel_D / self.width
        self.share_key_D.copy_(place_D**falling)
        self.share_value_D.copy_(place_D**falling + 0.3 * rising)
        self.share_receptance_D.copy_(place_D ** (falling / 2))
        self.w_raw_D.copy_(-5 + 8 * (channel_D / max(1, self.width - 1)) ** (0.7 + 1.3 * rising))
        self.bonus_D.copy_(math.log(0.3) + 0.5 * ((channel_D + 1) % 3 - 1))

    def empty_state(self, batch: int) -> State:
        like = widened(self.w_raw_D)
        return like.new_zeros(batch, 1, self.width), *empty_triple(batch, self.width, like)

    def flops(self, context: int) -> float:
        return super().flops(context) + 30.0 * self.width

    def forward(self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State]:
        last, *triple = state or self.empty_state(x_BTD.shape[0])
        before_BTD, last = previous_token(x_BTD, last, context.starts_BT)
        r_BTD = self.receptance(_mixed(x_BTD, before_BTD, self.share_receptance_D)).sigmoid()
        k_BTD = self.key(_mixed(x_BTD, before_BTD, self.share_key_D))
        v_BTD = self.value(_mixed(x_BTD, before_BTD, self.share_value_D))
        numerator, denominator, maximum = triple
        wkv_BTD, after = wkv4(
            k_BTD,
            v_BTD,
            widened(self.w_raw_D).exp(),
            widened(self.bonus_D),
            (numerator, denominator, maximum),
            context.starts_BT,
        )
        return self.output(r_BTD * wkv_BTD), (last, *after)


def _mixed(x_BTD: Tensor, before_BTD: Tensor, share_D: Tensor) -> Tensor:
    return torch.lerp(before_BTD, x_BTD, share_D.to(x_BTD.dtype))
