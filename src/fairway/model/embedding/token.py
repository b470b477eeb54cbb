"""One vector for each token.

`x_t = W[token_t]`, W of shape (V, D); a tied head reads logits from the same W. Shape key: B batch, T time, D width,
V vocabulary.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.config import Source
from fairway.model.parts import NO_CONTEXT, Context, Embedding, EmbeddingConfig, InputSite, Role, State

SOURCE = Source("Bengio et al.", 2003, "JMLR 3:1137-1155")


class Config(EmbeddingConfig):
    """Settings of a token table."""

    deviation: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial table; small, so that a tied head starts near uniform."""

    def build(self, vocabulary: int, width: int, site: InputSite = InputSite()) -> Embedding:  # noqa: ARG002, B008
        return TokenEmbedding(vocabulary, width, self)


class TokenEmbedding(Embedding):
    """`forward(tokens_BT, state, context) -> (x_BTD, ())`."""

    def __init__(self, vocabulary: int, width: int, config: Config) -> None:
        super().__init__()
        self.deviation = config.deviation
        self.weight = nn.Parameter(torch.empty(vocabulary, width))

    def roles(self) -> dict[str, Role]:
        return {"weight": Role.EMBEDDING}

    def init_weights(self, generator: torch.Generator) -> None:
        self.weight.normal_(0.0, self.deviation, generator=generator)

    def forward(
        self,
        tokens_BT: Tensor,
        state: State | None = None,  # noqa: ARG002
        context: Context = NO_CONTEXT,  # noqa: ARG002
    ) -> tuple[Tensor, State]:
        return functional.embedding(tokens_BT, self.weight), ()

    def unembed(self, x_BTD: Tensor) -> Tensor:
        return functional.linear(x_BTD, self.weight)

    def output_table(self) -> Tensor | None:
        return self.weight
