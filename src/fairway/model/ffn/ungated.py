"""Two linear maps around a point function.

`y = g(x W_in) W_out` without biases; g is ReLU, GELU (exact or by tanh), SiLU, the squared ReLU (So et al. 2021),
or the squared leaky ReLU with slope 1/2. Shape key: B batch, T time, D width.
"""

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from fairway.core.config import Source
from fairway.model.activation import ACTIVATIONS
from fairway.model.linear import Linear
from fairway.model.parts import NO_AUX, NO_CONTEXT, Aux, Context, Ffn, FfnConfig, Site, State

KINDS = ("relu", "gelu", "silu", "relu2", "leaky_relu2")
SUMMARIES = {
    "relu": "Feed-forward with ReLU",
    "gelu": "Feed-forward with GELU, exact or by tanh",
    "silu": "Feed-forward with SiLU",
    "relu2": "Feed-forward with the squared ReLU",
    "leaky_relu2": "Feed-forward with the squared leaky ReLU",
}
SOURCES = {
    "relu": Source("Vaswani et al.", 2017, "arXiv:1706.03762"),
    "gelu": Source("Hendrycks & Gimpel", 2016, "arXiv:1606.08415"),
    "silu": Source("Elfwing et al.", 2017, "arXiv:1702.03118"),
    "relu2": Source("So et al.", 2021, "arXiv:2109.08668"),
    "leaky_relu2": Source("OpenAI Parameter Golf, submission 493", 2026, "https://github.com/openai/parameter-golf"),
}


class Config(FfnConfig):
    """Settings of an ungated feed-forward."""

    ratio: float = Field(default=4.0, gt=0)
    """Hidden width over model width."""
    form: Literal["exact", "tanh"] = "exact"
    """How GELU is computed; other functions have one form."""

    @model_validator(mode="after")
    def _form_is_for_gelu(self) -> "Config":
        if self.form != "exact" and self.kind != "gelu":
            raise ValueError(f'form "{self.form}" is for gelu; {self.kind} has one form, exact')
        return self

    def build(self, width: int, site: Site = Site()) -> Ffn:  # noqa: ARG002, B008
        return Ungated(width, self)


class Ungated(Ffn):
    """`forward(x_BTD, state, context) -> (y_BTD, (), aux)`."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        hidden = max(1, round(config.ratio * width))
        self.activation = ACTIVATIONS["gelu_tanh" if config.form == "tanh" else config.kind]
        self.input = Linear(width, hidden)
        self.output = Linear(hidden, width, gain=0.0)

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,  # noqa: ARG002
        context: Context = NO_CONTEXT,  # noqa: ARG002
    ) -> tuple[Tensor, State, Aux]:
        return self.output(self.activation(self.input(x_BTD))), (), NO_AUX
