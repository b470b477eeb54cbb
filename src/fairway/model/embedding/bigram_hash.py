"""A second vector for each pair of tokens, looked up by a hash, added to that of another embedding.

`x_t = base(t) + s R[h_t] P`, `h_t = ((36313 token_t) xor (27191 token_(t-1))) mod (N - 1)`, the last of N rows for
the first token of a document. R begins at zero, P does not; s is a learned scalar that begins at 0.05. It carries
the last token along. From the records of OpenAI's Parameter Golf challenge. Shape key: B batch, T time, D width, E
inner width, N rows.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fairway.core.config import Slot, Source
from fairway.model.linear import Linear
from fairway.model.parts import NO_CONTEXT, Context, Embedding, EmbeddingConfig, InputSite, Role, State
from fairway.ops.bigram import NO_TOKEN, bigram_rows

SOURCE = Source("OpenAI Parameter Golf", 2026, "https://github.com/openai/parameter-golf")
BASE = Slot("fairway.model.embedding", "token", nested=True)


class Config(EmbeddingConfig):
    """Settings of a hashed bigram table."""

    base: Annotated[EmbeddingConfig, BASE] = Field(default="token", validate_default=True)
    """The embedding this one adds to."""
    rows: int = Field(default=2048, ge=2)
    """Rows of the table, the one for first tokens included."""
    inner: int = Field(default=64, ge=1)
    """Width of the table."""

    def build(self, vocabulary: int, width: int, site: InputSite = InputSite()) -> Embedding:  # noqa: B008
        return BigramHashEmbedding(self.base.build(vocabulary, width, site), width, self)


class BigramHashEmbedding(Embedding):
    """`forward(tokens_BT, state, context) -> (x_BTD, (last_B, ...))`."""

    def __init__(self, base: Embedding, width: int, config: Config) -> None:
        super().__init__()
        self.base = base
        self.table_NE = nn.Parameter(torch.empty(config.rows, config.inner))
        self.up = Linear(config.inner, width)
        self.scale = nn.Parameter(torch.empty(()))

    def roles(self) -> dict[str, Role]:
        return {"table_NE": Role.EMBEDDING, "scale": Role.SCALAR}

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        self.table_NE.zero_()
        self.scale.fill_(0.05)

    def empty_state(self, batch: int) -> State:
        last_B = torch.full((batch,), NO_TOKEN, dtype=torch.int64, device=self.table_NE.device)
        return last_B, *self.base.empty_state(batch)

    def state_bytes(self, context: int) -> int:
        return 8 + self.base.state_bytes(context)

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, context: Context = NO_CONTEXT
    ) -> tuple[Tensor, State]:
        last_B, *inner = self.empty_state(len(tokens_BT)) if state is None else state
        x_BTD, after = self.base(tokens_BT, tuple(inner), context)
        row_BT = bigram_rows(tokens_BT, last_B, context.starts_BT, len(self.table_NE))
        pair_BTD = self.up(functional.embedding(row_BT, self.table_NE))
        x_BTD = x_BTD + pair_BTD * self.scale.to(pair_BTD.dtype)
        return x_BTD, (tokens_BT[:, -1].clone() if tokens_BT.shape[1] else last_B, *after)

    def unembed(self, x_BTD: Tensor) -> Tensor:
        return self.base.unembed(x_BTD)

    def unembed_flops(self) -> float | None:
        return self.base.unembed_flops()

    def output_table(self) -> Tensor | None:
        return self.base.output_table()

    def values(self, tokens_BT: Tensor) -> Tensor | None:
        return self.base.values(tokens_BT)
