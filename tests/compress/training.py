"""A loop small enough to step by hand, with real optimizers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.examples import model, text
from fairway.core.config import Slot
from fairway.data.batches import Batch
from fairway.model.lm import LanguageModel, Output
from fairway.model.parts import NO_AUX
from fairway.optim.parts import Optimizer, OptimizerConfig
from fairway.train.parts import Hook

BATCH = Batch(torch.cat(text()), torch.zeros(torch.cat(text()).shape, dtype=torch.bool))
OUTPUT = Output(torch.empty(0), (), NO_AUX)
OPTIMIZERS = Slot("fairway.optim.optimizer", "muon")


@dataclass
class Loop:
    """Steps a model on fixed text; hooks are called as the real loop calls them."""

    model: LanguageModel
    optimizer: Optimizer
    total: int
    step: int = 0

    @property
    def progress(self) -> float:
        return self.step / self.total

    def run(self, hooks: list[Hook], steps: int | None = None) -> None:
        for hook in hooks:
            hook.start(self)
        for _ in range(steps if steps is not None else self.total):
            self.model.train()
            self.optimizer.zero_grad()
            extra = [value for hook in hooks for value in hook.loss(self, BATCH, OUTPUT).values()]
            sum(extra, self.loss()).backward()
            if not any(hook.gradients(self) for hook in hooks):
                self.optimizer.step(1.0, self.progress)
            for hook in hooks:
                hook.stepped(self)
            self.step += 1

    def loss(self) -> Tensor:
        tokens_BT = torch.cat(text())
        logits = self.model.logits(self.model(tokens_BT[:, :-1]).hidden_BTD)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten())


def loop(total: int, optimizer: str = "adamw", **changes: Any) -> Loop:
    """A fresh loop."""
    subject = model(**changes)
    config = OPTIMIZERS.config(optimizer).model_validate({"kind": optimizer})
    assert isinstance(config, OptimizerConfig)
    return Loop(subject, config.build(subject), total)
