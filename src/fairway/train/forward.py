"""The loss of one micro-batch: model, next-token loss, auxiliary losses, and what hooks add.

Shape key: B batch, T time, N tokens (batch and time flattened), D width.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fairway.data.batches import Batch
from fairway.loss.next_token import NextToken, next_token
from fairway.train.parts import Hook, Trainee
from fairway.train.settings import TrainConfig

Loss = tuple[Tensor, Tensor, dict[str, Tensor]]


class Forward(nn.Module):
    """`forward(batch, progress, total) -> (loss, nats, statistics)`: one call that holds all weights a step needs."""

    def __init__(self, trainee: Trainee, config: TrainConfig, hooks: Sequence[Hook]) -> None:
        super().__init__()
        self.model = trainee.model
        self.trainee, self.config, self.hooks = trainee, config, hooks
        # In a tuple, so that the compiled model is not registered as a second copy of the weights.
        self.run = (torch.compile(self.model) if config.compile else self.model,)

    def forward(self, part: Batch, progress: float, total: int) -> Loss:
        """Loss of a part of a batch, weighted so that parts of `total` tokens add up to the mean; plain mean nats."""
        starts = part.starts_BT[:, :-1] if self.config.isolate_documents else None
        output = self.run[0](part.tokens_BT[:, :-1], starts_BT=starts, progress=progress)
        share = part.tokens_BT[:, 1:].numel() / total
        main = self._next_token(output.hidden_BTD.flatten(0, 1), part, progress, 1.0 / total)
        extra = output.aux.loss() * share
        for hook in self.hooks:
            extra = extra + sum(hook.loss(self.trainee, part, output).values()) * share
        return main.loss + extra, main.nats, output.aux.statistics

    def _next_token(self, hidden_ND: Tensor, part: Batch, progress: float, weight: float) -> NextToken:
        head, embedding = self.model.head, self.model.embedding
        parameters = [*embedding.parameters(), *head.parameters()]
        logits = head.table(embedding, progress) or partial(head.uncapped, embedding=embedding, progress=progress)
        own = math.prod(hook.next_token_weight(self.trainee) for hook in self.hooks)
        terms = [term for hook in self.hooks if (term := hook.term(self.trainee, part)) is not None]
        target_N, cap = part.tokens_BT[:, 1:].flatten(), head.config.softcap
        return next_token(logits, parameters, hidden_ND, target_N, self.config.loss, cap, weight, terms, own)
