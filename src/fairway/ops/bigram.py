"""Rows of a hashed table of token pairs, from the records of OpenAI's Parameter Golf. Shape key: B batch, T time."""

import torch
from torch import Tensor

NO_TOKEN = -1


def bigram_rows(tokens_BT: Tensor, last_B: Tensor, starts_BT: Tensor | None, rows: int) -> Tensor:
    """Row of each token's pair, (B, T), computed in 64 bits; `last_B` is -1 where no token came before."""
    tokens_BT = tokens_BT.long()
    before_BT = torch.cat((last_B[:, None], tokens_BT[:, :-1]), dim=1)
    hashed_BT = ((36313 * tokens_BT) ^ (27191 * before_BT)) % (rows - 1)
    first_BT = before_BT == NO_TOKEN
    if starts_BT is not None:
        first_BT = first_BT | starts_BT
    return hashed_BT.masked_fill(first_BT, rows - 1)
