"""A second table whose vectors are added to the values of attention in every layer.

`v_t = x_t W_v + U[token_t]`, U of shape (V, E) and zero at first, E the features of the values. The input itself
comes from another embedding. After the value residual of Zhou et al. 2024 and the records of the modded-nanogpt
speed run. Shape key: B batch, T time, D width, E value features, V vocabulary.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.config import Slot, Source
from fairway.model.parts import NO_CONTEXT, Context, Embedding, EmbeddingConfig, InputSite, Role, State

SOURCE = Source("Zhou et al.", 2024, "arXiv:2410.17897")
BASE = Slot("fairway.model.embedding", "token", nested=True)


class Config(EmbeddingConfig):
    """Settings of a value embedding."""

    base: Annotated[EmbeddingConfig, BASE] = Field(default="token", validate_default=True)
    """The embedding that makes the input."""

    def build(self, vocabulary: int, width: int, site: InputSite = InputSite()) -> Embedding:  # noqa: B008
        if not site.value_features:
            raise ValueError("no mixer of this model reads value embeddings; attention does")
        return ValueEmbedding(self.base.build(vocabulary, width, site), vocabulary, site.value_features)


class ValueEmbedding(Embedding):
    """`forward(tokens_BT, state, context) -> (x_BTD, state)` of the base; `values(tokens_BT) -> value_BTE`."""

    def __init__(self, base: Embedding, vocabulary: int, features: int) -> None:
        super().__init__()
        self.base = base
        self.table_VE = nn.Parameter(torch.empty(vocabulary, features))

    def roles(self) -> dict[str, Role]:
        return {"table_VE": Role.EMBEDDING}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        self.table_VE.zero_()

    def empty_state(self, batch: int) -> State:
        return self.base.empty_state(batch)

    def state_bytes(self, context: int) -> int:
        return self.base.state_bytes(context)

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State]:
        return self.base(tokens_BT, state, context)

    def values(self, tokens_BT: Tensor) -> Tensor | None:
        own_BTE = functional.embedding(tokens_BT, self.table_VE)
        below_BTE = self.base.values(tokens_BT)
        return own_BTE if below_BTE is None else own_BTE + below_BTE

    def unembed(self, x_BTD: Tensor) -> Tensor:
        return self.base.unembed(x_BTD)

    def unembed_flops(self) -> float | None:
        return self.base.unembed_flops()

    def output_table(self) -> Tensor | None:
        return self.base.output_table()
