"""One layer: a mixer and a feed-forward, each inside a residual branch.

F is the mixer or the feed-forward, N a norm, s the branch's scale: `pre`: `x + s F(N(x))` (Xiong et al. 2020,
arXiv:2002.04745); `post`: `N(x + s F(x))`; `sandwich`: `x + s N(F(N(x)))` (Ding et al. 2021, arXiv:2105.13290);
`deepnorm`: `N(a x + s F(x))`, `a = (2 L)^(1/4)` over L layers (Wang et al. 2022, arXiv:2203.00555; its smaller
initial weights are not needed, as outputs of mixers and feed-forwards begin at zero). In a parallel block mixer and
feed-forward read the same input, `x + s F1(N1(x)) + s F2(N2(x))`. Shape key: B batch, T time, D width.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fairway.core.config import Config
from fairway.model.parts import (
    NO_CONTEXT,
    Aux,
    Context,
    FfnConfig,
    MixerConfig,
    Norm,
    NormConfig,
    Part,
    Role,
    Site,
    State,
    Stateful,
    joined,
    split_state,
)


class BlockConfig(Config):
    """Settings of the residual branches."""

    placement: Literal["pre", "post", "sandwich", "deepnorm"] = "pre"
    """Where the norms stand."""
    parallel: bool = False
    """Mixer and feed-forward read the same input, side by side."""
    residual_scale: float = Field(default=1.0, gt=0)
    """Factor on every branch."""
    depth_scale: bool = False
    """Multiply what enters the branches of layer l, counted from 0, by `1 / sqrt(l + 1)`."""
    learned_scale: bool = False
    """Learn one factor per feature and branch, beginning at `residual_scale`."""

    @model_validator(mode="after")
    def _parallel_needs_a_plain_sum(self) -> "BlockConfig":
        if self.parallel and self.placement in ("post", "deepnorm"):
            raise ValueError(f"parallel branches have no {self.placement} norm between them; pre and sandwich work")
        return self


class Gain(Part):
    """One learned factor per feature."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.gain_D = nn.Parameter(torch.empty(width))

    def roles(self) -> dict[str, Role]:
        return {"gain_D": Role.VECTOR}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        self.gain_D.fill_(self.start)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The input times the gain."""
        return x_BTD * self.gain_D.to(x_BTD.dtype)


class Block(Stateful):
    """`forward(x_BTD, state, context) -> (x_BTD, state, aux)`."""

    def __init__(
        self,
        width: int,
        mixer: MixerConfig,
        ffn: FfnConfig,
        norm: NormConfig,
        site: Site,
        config: BlockConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.parallel = config.parallel
        self.mixer = mixer.build(width, site)
        self.ffn = ffn.build(width, site)
        self.mixer_norm = norm.build(width, "mixer")
        self.ffn_norm = norm.build(width, "ffn")
        sandwich = config.placement == "sandwich"
        self.mixer_after = norm.build(width, "mixer") if sandwich else None
        self.ffn_after = norm.build(width, "ffn") if sandwich else None
        learned = config.learned_scale
        self.mixer_scale = Gain(width, config.residual_scale) if learned else None
        self.ffn_scale = Gain(width, config.residual_scale) if learned else None
        self.entering = 1 / math.sqrt(site.layer + 1) if config.depth_scale else 1.0
        self.carried = (2 * site.layers) ** 0.25 if config.placement == "deepnorm" else 1.0

    def take_all_of(self, owner: "Block") -> None:
        """Uses every part of another block; what depends on the layer stays its own."""
        for name, part in owner.named_children():
            setattr(self, name, part)

    def run_in_parallel(self) -> None:
        """From now on mixer and feed-forward read the same input."""
        if self.config.placement in ("post", "deepnorm"):
            raise ValueError(f"parallel branches have no {self.config.placement} norm between them; pre would work")
        self.parallel = True

    def empty_state(self, batch: int) -> State:
        return joined((self.mixer.empty_state(batch), self.ffn.empty_state(batch)))

    def state_bytes(self, context: int) -> int:
        return self.mixer.state_bytes(context) + self.ffn.state_bytes(context)

    def forward(
        self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State, Aux]:
        if context.first and self.ffn.empty_state(1):
            x_BTD, state, aux = self(x_BTD, state, context.with_(first=0))
            return x_BTD[:, context.first :], state, aux
        before_mixer, before_ffn = split_state(state, (self.mixer, self.ffn))
        y_BTD, after_mixer = self.mixer(self._entry(x_BTD, self.mixer_norm), before_mixer, context)
        if context.first:
            x_BTD = x_BTD[:, context.first :]
            y_BTD, context = y_BTD[:, y_BTD.shape[1] - x_BTD.shape[1] :], context.wanted()
        y_BTD = self._branch(y_BTD, self.mixer_after, self.mixer_scale)
        mixed_BTD, enters_BTD = self._between(x_BTD, y_BTD)
        y_BTD, after_ffn, aux = self.ffn(enters_BTD, before_ffn, context)
        x_BTD = self._added(mixed_BTD, self._branch(y_BTD, self.ffn_after, self.ffn_scale), self.ffn_norm)
        return x_BTD, joined((after_mixer, after_ffn)), aux.under("ffn")

    def _between(self, x_BTD: Tensor, y_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The stream with the mixer's branch in it, and what the feed-forward reads."""
        if self._norms_entries and not self.parallel:
            mixed_BTD, normed_BTD = self.ffn_norm.of_sum(x_BTD, y_BTD)
            return mixed_BTD, normed_BTD if self.entering == 1.0 else normed_BTD * self.entering
        mixed_BTD = self._added(x_BTD, y_BTD, self.mixer_norm)
        return mixed_BTD, self._entry(x_BTD if self.parallel else mixed_BTD, self.ffn_norm)

    @property
    def _norms_entries(self) -> bool:
        return self.config.placement in ("pre", "sandwich")

    def _entry(self, x_BTD: Tensor, norm: Norm) -> Tensor:
        """What a branch reads."""
        if self._norms_entries:
            x_BTD = norm(x_BTD)
        return x_BTD if self.entering == 1.0 else x_BTD * self.entering

    def _branch(self, y_BTD: Tensor, after: Norm | None, scale: "Gain | None") -> Tensor:
        """What a branch adds to the stream."""
        if after is not None:
            y_BTD = after(y_BTD)
        if scale is not None:
            return scale(y_BTD)
        return y_BTD if self.config.residual_scale == 1.0 else y_BTD * self.config.residual_scale

    def _added(self, x_BTD: Tensor, y_BTD: Tensor, norm: Norm) -> Tensor:
        """The stream with a branch in it."""
        if self.config.placement == "deepnorm":
            return norm(self.carried * x_BTD + y_BTD)
        return norm(x_BTD + y_BTD) if self.config.placement == "post" else x_BTD + y_BTD
