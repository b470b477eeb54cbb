"""A sparse mixture of experts.

`y = sum_shared f_i(x) + sum_(e in top k) g_e f_e(x)`, f feed-forwards without biases. Mixtral (Jiang et al. 2024):
`renormalise: true`, gates are the softmax over the chosen. DeepSeekMoE (Dai et al. 2024): `renormalise: false`,
`fine: m` cuts each expert into m of 1/m the width and chooses m times as many, some of them `shared` by all tokens.
Router in float32. Without a capacity nothing is dropped; a capacity acts in training alone, so that outside it no
token depends on others. Losses and figures are in `fairway.model.routing`; the balancing bias is moved after each
step by `rate * sign(mean load - load)` (Wang et al. 2024, arXiv:2408.15664). Shape key: B batch, T time, D width, N
tokens, E experts, F hidden width, A assignments.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.config import Source
from fairway.core.errors import ConfigError
from fairway.model import routing
from fairway.model.activation import ACTIVATIONS
from fairway.model.parts import NO_CONTEXT, Aux, Context, Ffn, FfnConfig, Role, Site, State
from fairway.ops.experts import naive, native
from fairway.ops.route.native import route

SOURCE = Source("Shazeer et al.", 2017, "arXiv:1701.06538")

_POINT = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu", "relu2": "relu2", "gelu": "gelu", "silu": "silu"}


class Config(FfnConfig):
    """Settings of a mixture of experts; before `fine` cuts them, experts are counted whole."""

    experts: int = Field(default=8, ge=1)
    """Experts to choose from and shared ones, together."""
    top: int = Field(default=2, ge=1)
    """Experts that a token uses, the shared ones among them."""
    fine: int = Field(default=1, ge=1)
    """Cut every expert into this many narrower ones; a token uses as many times more."""
    shared: int = Field(default=0, ge=0)
    """Experts, after cutting, that every token uses."""
    ratio: float = Field(default=2.0, gt=0)
    """Hidden width of a whole expert over the model's width; 4 / top costs what a dense feed-forward of 4 does."""
    expert: Literal["swiglu", "geglu", "reglu", "relu2", "gelu", "silu"] = "relu2"
    """What each expert is."""
    renormalise: bool = True
    """Let the gates of the chosen experts sum to one."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    routing: Literal["token", "expert"] = "token"
    """Who chooses: each token its experts, or each expert its tokens."""
    allow_future: bool = False
    """Permit expert choice, by which later tokens sway earlier ones, in a causal model."""
    capacity: float | None = Field(default=None, gt=0)
    """Tokens an expert takes in training at most, over its even share; no limit if not given."""
    rounding: Literal["floor", "ceil"] = "floor"
    """How the capacity becomes a whole number of tokens."""
    drop: Literal["position", "score"] = "position"
    """What exceeds the capacity: later tokens, or smaller gates."""
    groups: int = Field(default=1, ge=1)
    """Equal groups of experts, as on devices."""
    top_groups: int | None = Field(default=None, ge=1)
    """Groups that a token may choose from; all if not given."""
    balance: float = Field(default=0.01, ge=0)
    """Weight of the expert balance loss."""
    device_balance: float = Field(default=0.0, ge=0)
    """Weight of the balance loss over groups."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared log-sum-exp of router logits."""
    bias_rate: float = Field(default=0.0, ge=0)
    """Step of the balancing bias; 0 for none."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> "Config":
        if self.shared >= self.experts * self.fine:
            raise ValueError(f"{self.shared} shared of {self.experts * self.fine} experts leave none to choose from")
        if self.top > self.experts:
            raise ValueError(f"top {self.top} is more than the {self.experts} experts; at most {self.experts} works")
        if self.shared >= self.top * self.fine:
            raise ValueError(f"{self.shared} shared experts leave none of the {self.top * self.fine} a token uses")
        if self.routed % self.groups:
            raise ValueError(f"{self.routed} routed experts do not form {self.groups} equal groups")
        if self.top_groups is not None and not (
            self.top_groups <= self.groups and self.chosen <= self.top_groups * self.routed // self.groups
        ):
            raise ValueError(
                f"{self.top_groups} of {self.groups} groups do not hold the {self.chosen} experts of a token"
            )
        return self

    @model_validator(mode="after")
    def _expert_choice_is_asked_for(self) -> "Config":
        if self.routing == "expert" and not self.allow_future:
            raise ValueError(
                "with expert choice, whether an expert takes a token depends on later tokens: in a causal model the "
                "future leaks, and scores in training are not those of real prediction. routing: token works; "
                "allow_future: true insists"
            )
        if self.routing == "expert" and (self.bias_rate or self.capacity is not None or self.top_groups is not None):
            raise ValueError("expert choice is even by itself; it takes no bias_rate, capacity or top_groups")
        return self

    @property
    def routed(self) -> int:
        """Experts to choose from."""
        return self.experts * self.fine - self.shared

    @property
    def chosen(self) -> int:
        """Experts that a token chooses."""
        return self.top * self.fine - self.shared

    @property
    def gated(self) -> bool:
        """Whether experts are gated linear units."""
        return self.expert in ("swiglu", "geglu", "reglu")

    def hidden(self, width: int) -> int:
        """Hidden width of one expert after cutting."""
        share = 2 / 3 if self.gated else 1.0
        return max(8, 8 * round(self.ratio * width * share / self.fine / 8))

    def build(self, width: int, site: Site = Site()) -> Ffn:  # noqa: ARG002, B008
        return MixtureOfExperts(width, self)


class MixtureOfExperts(Ffn):
    """`forward(x_BTD, state, context) -> (y_BTD, (), aux)`."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.hidden = config.hidden(width)
        first = self.hidden * (2 if config.gated else 1)
        self.activation = ACTIVATIONS[_POINT[config.expert]]
        self.router_ED = nn.Parameter(torch.empty(config.routed, width))
        self.input_EJD = nn.Parameter(torch.empty(config.routed, first, width))
        self.output_EDF = nn.Parameter(torch.empty(config.routed, width, self.hidden))
        shared = config.shared
        self.shared_input_JD = nn.Parameter(torch.empty(shared * first, width)) if shared else None
        self.shared_output_DF = nn.Parameter(torch.empty(width, shared * self.hidden)) if shared else None
        self.bias_E = nn.Parameter(torch.empty(config.routed), requires_grad=False) if config.bias_rate else None

    def roles(self) -> dict[str, Role]:
        return {
            name: Role.ROUTER if name in ("router_ED", "bias_E") else Role.MATRIX
            for name, _ in self.named_parameters(recurse=False)
        }

    def pieces(self) -> dict[str, tuple[int, ...]]:
        halves = 2 if self.config.gated else 1
        fused = {"input_EJD": (self.hidden,) * halves} if halves > 1 else {}
        return fused | ({"shared_input_JD": (self.hidden,) * halves * self.config.shared} if self.config.shared else {})

    def init_weights(self, generator: torch.Generator) -> None:
        deviation = 1 / math.sqrt(self.width)
        self.router_ED.normal_(0.0, deviation, generator=generator)
        self.input_EJD.normal_(0.0, deviation, generator=generator)
        self.output_EDF.zero_()
        if self.shared_input_JD is not None and self.shared_output_DF is not None:
            self.shared_input_JD.normal_(0.0, deviation, generator=generator)
            self.shared_output_DF.zero_()
        if self.bias_E is not None:
            self.bias_E.zero_()

    def idle_parameters(self) -> int:
        per_expert = (self.input_EJD.numel() + self.output_EDF.numel()) // self.config.routed
        return (self.config.routed - self.config.chosen) * per_expert

    def looks_ahead(self) -> bool:
        return self.config.routing == "expert" or (self.config.capacity is not None and self.config.drop == "score")

    def needs_whole_sequences(self) -> bool:
        return True

    def flops(self, context: int) -> float:  # noqa: ARG002
        per_expert = 2.0 * (self.input_EJD.numel() + self.output_EDF.numel()) / self.config.routed
        return 2.0 * self.router_ED.numel() + per_expert * (self.config.chosen + self.config.shared)

    def after_step(self, statistics: dict[str, Tensor]) -> None:
        if self.bias_E is not None and "load" in statistics:
            with torch.no_grad():
                step_E = torch.sign(1.0 - statistics["load"]) * self.config.bias_rate
                self.bias_E.add_(step_E.to(self.bias_E))

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,  # noqa: ARG002
        context: Context = NO_CONTEXT,  # noqa: ARG002
    ) -> tuple[Tensor, State, Aux]:
        x_ND = x_BTD.reshape(-1, self.width)
        logits_NE, chosen = self._route(x_ND)
        load_E = routing.load(chosen.expert_A, self.config.routed)
        kept = self._within_capacity(chosen)
        y_ND = native.mix(
            x_ND, kept.token_A, kept.expert_A, kept.gate_A, self.input_EJD, self.output_EDF, self.activation,
            gated=self.config.gated,
        )  # fmt: skip
        if self.shared_input_JD is not None and self.shared_output_DF is not None:
            y_ND = y_ND + self._shared(x_ND, self.shared_input_JD, self.shared_output_DF)
        aux = self._losses(logits_NE, chosen, load_E) + routing.figures(kept, load_E)
        return y_ND.view(*x_BTD.shape[:2], self.width), (), aux

    def _route(self, x_ND: Tensor) -> tuple[Tensor, routing.Routing]:
        """Logits of all experts, and the choice."""
        config = self.config
        dtype = torch.promote_types(x_ND.dtype, torch.float32)
        x_ND, router_ED = x_ND.to(dtype), self.router_ED.to(dtype)
        with torch.autocast(x_ND.device.type, enabled=False):
            if config.routing == "token" and (config.top_groups is None or config.top_groups == config.groups):
                found = route(
                    x_ND, router_ED, self.bias_E, config.chosen, config.scores, renormalise=config.renormalise
                )  # fmt: skip
                return found.logits_NE, routing.of_tokens(found.expert_NK, found.gate_NK, found.scores_NE)
            logits_NE = functional.linear(x_ND, router_ED)
        return logits_NE, self._choose(routing.scores(logits_NE, config.scores))

    def _choose(self, scores_NE: Tensor) -> routing.Routing:
        config = self.config
        if config.routing == "expert":
            return routing.expert_choice(scores_NE, max(1, len(scores_NE) * config.chosen // config.routed))
        assert config.top_groups is not None
        limit = routing.outside_best_groups(scores_NE, config.groups, config.top_groups)
        return routing.token_choice(
            scores_NE, config.chosen, bias_E=self.bias_E, renormalise=config.renormalise, limit=limit
        )

    def _within_capacity(self, chosen: routing.Routing) -> routing.Routing:
        config = self.config
        if config.capacity is None or not self.training:
            return chosen
        even = config.capacity * config.chosen * len(chosen.scores_NE) / config.routed
        limit = max(1, math.ceil(even) if config.rounding == "ceil" else math.floor(even))
        return routing.capped(chosen, limit, config.routed, config.drop)

    def _shared(self, x_ND: Tensor, input_JD: Tensor, output_DF: Tensor) -> Tensor:
        """All shared experts as one wider feed-forward, which their sum is."""
        return naive.expert(x_ND, input_JD, output_DF, self.activation, gated=self.config.gated)

    def _losses(self, logits_NE: Tensor, chosen: routing.Routing, load_E: Tensor) -> Aux:
        config, losses = self.config, {}
        if config.balance and config.routing == "token":
            losses["balance"] = config.balance * routing.balance_loss(load_E, chosen.scores_NE)
        if config.device_balance and config.routing == "token":
            losses["device_balance"] = config.device_balance * routing.device_loss(
                load_E, chosen.scores_NE, config.groups
            )
        if config.z_loss:
            losses["z"] = config.z_loss * routing.z_loss(logits_NE)
        return Aux(losses)


def upcycle(experts: MixtureOfExperts, input_JD: Tensor, output_DF: Tensor) -> None:
    """Copies a trained dense feed-forward into every expert, and leaves the router as it is.

    `input_JD` and `output_DF` are the weights of the dense feed-forward's two maps (for gated ones, the gate
    first). Experts cut by `fine` get slices of the hidden features in turn, so that `fine` of them make the dense
    one. With `renormalise` and uncut experts the mixture computes exactly what the dense feed-forward did
    (Komatsuzaki et al. 2023, arXiv:2212.05055). Raises `ConfigError` where the shapes do not fit.
    """
    halves = 2 if experts.config.gated else 1
    hidden, cuts = experts.hidden, experts.config.fine
    if tuple(output_DF.shape) != (experts.width, cuts * hidden) or len(input_JD) != halves * cuts * hidden:
        raise ConfigError(
            f"A dense feed-forward of hidden width {output_DF.shape[1]} was given; these experts are made from one of "
            f"{cuts * hidden} (model.ffn.ratio) and the same kind, {experts.config.expert}."
        )
    parts_HJD = input_JD.view(halves, cuts, hidden, experts.width)
    with torch.no_grad():
        for number in range(experts.config.routed + experts.config.shared):
            cut = number % cuts
            piece_JD = parts_HJD[:, cut].reshape(-1, experts.width)
            piece_DF = output_DF[:, cut * hidden : (cut + 1) * hidden]
            _place(experts, number - experts.config.shared, piece_JD, piece_DF)


def _place(experts: MixtureOfExperts, index: int, input_JD: Tensor, output_DF: Tensor) -> None:
    """Writes one expert; negative indices are the shared ones."""
    if index >= 0:
        experts.input_EJD[index].copy_(input_JD)
        experts.output_EDF[index].copy_(output_DF)
        return
    assert experts.shared_input_JD is not None
    assert experts.shared_output_DF is not None
    shared, halves = experts.config.shared, 2 if experts.config.gated else 1
    own = index + shared
    target = experts.shared_input_JD.view(halves, shared, experts.hidden, experts.width)
    target[:, own].copy_(input_JD.view(halves, experts.hidden, experts.width))
    experts.shared_output_DF[:, own * experts.hidden : (own + 1) * experts.hidden].copy_(output_DF)
