"""RWKV-4 channel mixing: a squared-ReLU feed-forward with a gate, both reading each token beside the one before it.

`k = (mu_k .* x_t + (1 - mu_k) .* x_(t-1)) W_k`, `r` likewise with mu_r and W_r; `y = sigmoid(r) .* (max(k, 0)^2 W_v)`.
Its state is the last input. Peng et al. 2023. Shape key: B batch, T time, D width.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fairway.core.config import Source
from fairway.model.activation import ACTIVATIONS
from fairway.model.linear import Linear
from fairway.model.parts import NO_AUX, NO_CONTEXT, Aux, Context, Ffn, FfnConfig, Role, Site, State, widened
from fairway.ops.conv.shift import previous_token

SOURCE = Source("Peng et al.", 2023, "arXiv:2305.13048")


class Config(FfnConfig):
    """Settings of RWKV-4 channel mixing."""

    ratio: float = Field(default=4.0, gt=0)
    """Hidden width over model width; 3.5 has the parameters of an ungated feed-forward of 4."""

    def build(self, width: int, site: Site = Site()) -> Ffn:  # noqa: B008
        return ChannelMix(width, self, site)


class ChannelMix(Ffn):
    """`forward(x_BTD, state, context) -> (y_BTD, (last_B1D,), aux)`."""

    def __init__(self, width: int, config: Config, site: Site) -> None:
        super().__init__()
        hidden = max(1, round(config.ratio * width))
        self.width = width
        self.site = site
        self.square = ACTIVATIONS["relu2"]
        self.key = Linear(width, hidden)
        self.receptance = Linear(width, width)
        self.output = Linear(hidden, width, gain=0.0)
        self.share_key_D = nn.Parameter(torch.empty(width))
        self.share_receptance_D = nn.Parameter(torch.empty(width))

    def roles(self) -> dict[str, Role]:
        return dict.fromkeys(("share_key_D", "share_receptance_D"), Role.VECTOR)

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        falling = 1 - self.site.layer / self.site.layers
        share_D = (torch.arange(self.width, dtype=torch.float64) / self.width) ** falling
        self.share_key_D.copy_(share_D)
        self.share_receptance_D.copy_(share_D)

    def empty_state(self, batch: int) -> State:
        return (widened(self.share_key_D).new_zeros(batch, 1, self.width),)

    def flops(self, context: int) -> float:
        return super().flops(context) + 8.0 * self.width

    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        (last,) = state or self.empty_state(x_BTD.shape[0])
        before_BTD, last = previous_token(x_BTD, last, context.starts_BT)
        key_BTF = self.key(_mixed(x_BTD, before_BTD, self.share_key_D))
        gate_BTD = self.receptance(_mixed(x_BTD, before_BTD, self.share_receptance_D)).sigmoid()
        return gate_BTD * self.output(self.square(key_BTF)), (last,), NO_AUX


def _mixed(x_BTD: Tensor, before_BTD: Tensor, share_D: Tensor) -> Tensor:
    return torch.lerp(before_BTD, x_BTD, share_D.to(x_BTD.dtype))
