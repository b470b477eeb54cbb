"""Gated linear units.

`y = (g(x W) .* x V) W_out` without biases; g is the sigmoid for `glu`, nothing for `bilinear`, ReLU, GELU or SiLU for
`reglu`, `geglu`, `swiglu`. W and V are one matrix, W first. The hidden width is 2/3 of `ratio * width`, rounded to a
multiple of 8, so that parameters and FLOPs match an ungated feed-forward of the same ratio. Shazeer 2020.
Shape key: B batch, T time, D width, F hidden width.
"""

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from fairway.core.config import Source
from fairway.model.linear import Linear
from fairway.model.parts import NO_AUX, NO_CONTEXT, Aux, Context, Ffn, FfnConfig, Site, State
from fairway.ops.gate.naive import Point
from fairway.ops.gate.native import gate

KINDS = ("glu", "bilinear", "reglu", "geglu", "swiglu")
SUMMARIES = {
    "glu": "Feed-forward gated by the sigmoid",
    "bilinear": "Feed-forward gated by a linear map",
    "reglu": "Feed-forward gated by ReLU",
    "geglu": "Feed-forward gated by GELU, exact or by tanh",
    "swiglu": "Feed-forward gated by SiLU",
}
SOURCE = Source("Shazeer", 2020, "arXiv:2002.05202")

_POINTS: dict[str, Point] = {
    "glu": "sigmoid",
    "bilinear": "identity",
    "reglu": "relu",
    "geglu": "gelu",
    "swiglu": "silu",
}


class Config(FfnConfig):
    """Settings of a gated feed-forward."""

    ratio: float = Field(default=4.0, gt=0)
    """Hidden width over model width of the ungated feed-forward with as many parameters."""
    form: Literal["exact", "tanh"] = "exact"
    """How the GELU of `geglu` is computed; other gates have one form."""

    @model_validator(mode="after")
    def _form_is_for_geglu(self) -> "Config":
        if self.form != "exact" and self.kind != "geglu":
            raise ValueError(f'form "{self.form}" is for geglu; {self.kind} has one form, exact')
        return self

    def build(self, width: int, site: Site = Site()) -> Ffn:  # noqa: ARG002, B008
        return Gated(width, self)


class Gated(Ffn):
    """`forward(x_BTD, state, context) -> (y_BTD, (), aux)`."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        hidden = max(8, 8 * round(config.ratio * width * 2 / 3 / 8))
        self.point: Point = "gelu_tanh" if config.form == "tanh" else _POINTS[config.kind]
        self.input = Linear(width, 2 * hidden, pieces=(hidden, hidden))
        self.output = Linear(hidden, width, gain=0.0)

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,  # noqa: ARG002
        context: Context = NO_CONTEXT,  # noqa: ARG002
    ) -> tuple[Tensor, State, Aux]:
        return self.output(gate(self.input(x_BTD), self.point)), (), NO_AUX
