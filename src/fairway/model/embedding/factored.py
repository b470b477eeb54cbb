"""A narrow table and a linear map up to the model's width (ALBERT).

`x_t = A[token_t] B`, A of shape (V, E), B of shape (E, D): E (V + D) parameters in the place of V D. A tied head
reads `A (B h)` from both, or `A g(h)` from the table alone, g a linear map D -> E, GELU and a norm of its own. Lan
et al. 2020. Shape key: B batch, T time, D width, E inner width, V vocabulary.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.config import Source
from fairway.model.linear import Linear
from fairway.model.parts import (
    NO_CONTEXT,
    Context,
    Embedding,
    EmbeddingConfig,
    InputSite,
    Part,
    Role,
    State,
    widened,
)

SOURCE = Source("Lan et al.", 2020, "arXiv:1909.11942")


class Config(EmbeddingConfig):
    """Settings of a factored table."""

    inner: int = Field(default=64, ge=1)
    """Width E of the table."""
    tie: Literal["both", "table"] = "both"
    """What a tied head shares: both factors, or the table alone behind a small network of its own."""
    deviation: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial embedded input."""

    def build(self, vocabulary: int, width: int, site: InputSite = InputSite()) -> Embedding:  # noqa: B008
        if self.inner > width:
            raise ValueError(f"inner {self.inner} is wider than the model; at most {width} would work")
        return FactoredEmbedding(vocabulary, width, self, site)


class FactoredEmbedding(Embedding):
    """`forward(tokens_BT, state, context) -> (x_BTD, ())`."""

    def __init__(self, vocabulary: int, width: int, config: Config, site: InputSite) -> None:
        super().__init__()
        self.deviation = config.deviation
        self.table_VE = nn.Parameter(torch.empty(vocabulary, config.inner))
        self.up = Linear(config.inner, width)
        self.down = _Down(width, config.inner) if config.tie == "table" and site.tied else None

    def roles(self) -> dict[str, Role]:
        return {"table_VE": Role.EMBEDDING}

    def init_weights(self, generator: torch.Generator) -> None:
        self.table_VE.normal_(0.0, self.deviation, generator=generator)

    def flops(self, context: int) -> float:
        return self.up.flops(context)

    def forward(
        self,
        tokens_BT: Tensor,
        state: State | None = None,  # noqa: ARG002
        context: Context = NO_CONTEXT,  # noqa: ARG002
    ) -> tuple[Tensor, State]:
        return self.up(functional.embedding(tokens_BT, self.table_VE)), ()

    def unembed(self, x_BTD: Tensor) -> Tensor:
        inner_BTE = functional.linear(x_BTD, self.up.weight.T) if self.down is None else self.down(x_BTD)
        return functional.linear(inner_BTE, self.table_VE)

    def unembed_flops(self) -> float | None:
        back = 2.0 * self.up.weight.numel() if self.down is None else self.down.flops(1)
        return back + 2.0 * self.table_VE.numel()

    def output_table(self) -> Tensor | None:
        return None if self.down is not None else self.table_VE @ self.up.weight.T


class _Down(Part):
    """`g(h) = LN(GELU(h W + b))`, from the model's width to the table's."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = Linear(width, inner)
        self.dense_bias_E = nn.Parameter(torch.empty(inner))
        self.gain_E = nn.Parameter(torch.empty(inner))
        self.bias_E = nn.Parameter(torch.empty(inner))

    def roles(self) -> dict[str, Role]:
        return dict.fromkeys(("dense_bias_E", "gain_E", "bias_E"), Role.VECTOR)

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        self.gain_E.fill_(1.0)
        self.bias_E.zero_()
        self.dense_bias_E.zero_()

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTE = widened(functional.gelu(self.dense(x_BTD) + self.dense_bias_E))
        gain_E, bias_E = self.gain_E.to(hidden_BTE.dtype), self.bias_E.to(hidden_BTE.dtype)
        return functional.layer_norm(hidden_BTE, gain_E.shape, gain_E, bias_E, 1e-5)
