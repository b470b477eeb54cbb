"""Validation loss while training: plain windows over a fixed part of the validation text.

A curve to watch, cheap and inside the time budget; it decides nothing, and a score comes from `evaluate` alone. Where
parts of the model look ahead in training, as routers that pick the best tokens of a sequence do, the same windows are
measured that way too: the difference is what the model loses once it must predict.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fairway.core.config import Config
from fairway.data.manifest import Manifest
from fairway.model.lm import LanguageModel
from fairway.model.parts import Part
from fairway.train.meter import Meter
from fairway.train.parts import Hook, Trainee


class ValidationConfig(Config):
    """Settings of the validation curve."""

    times: int = Field(default=10, ge=0)
    """Measurements over the run; 0 switches them off."""
    windows: int = Field(default=32, ge=1)


class Validation(Hook):
    """Logs `val/bpb` at equal steps of progress, and `val/bpb_ahead` where training looks ahead."""

    ranks = "slices"

    def __init__(self, manifest: Manifest, meter: Meter, context: int, config: ValidationConfig) -> None:
        self.meter, self.config = meter, config
        self.measured = 0
        stream = manifest.tokens("validation")
        count = min(config.windows, len(stream) // (context + 1))
        windows = np.empty((count, context + 1), np.int64)
        for row in range(count):
            stream.read(row * (len(stream) // count // (context + 1)) * (context + 1), windows[row])
        self.windows_BT = torch.from_numpy(windows)

    def stepped(self, loop: Trainee) -> dict[str, float]:
        due = int(loop.progress * self.config.times)
        if not len(self.windows_BT) or due <= self.measured:
            return {}
        self.measured = due
        nats = mean_nats(loop.model, self.windows_BT)
        figures = {"val/loss": nats, "val/bpb": self.meter.bits_per_byte(nats)}
        if looks_ahead(loop.model):
            ahead = mean_nats(loop.model, self.windows_BT, as_in_training=True)
            figures["val/bpb_ahead"] = self.meter.bits_per_byte(ahead)
        return figures

    def state(self) -> dict[str, Tensor]:
        return {"measured": torch.tensor(self.measured)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.measured = int(state["measured"])


def looks_ahead(model: LanguageModel) -> bool:
    """Whether a part of the model lets later tokens sway earlier ones in training."""
    return any(isinstance(module, Part) and module.looks_ahead() for module in model.modules())


@torch.no_grad()
def mean_nats(model: LanguageModel, windows_BT: Tensor, *, as_in_training: bool = False) -> float:
    """Mean cross-entropy in nats per token over windows of consecutive tokens, (B, T + 1)."""
    training = model.training
    model.train(as_in_training)
    total = 0.0
    for part_BT in windows_BT.to(model.device).split(8):
        log_p_BTV = model.logits(model(part_BT[:, :-1]).hidden_BTD).log_softmax(-1)
        total -= float(log_p_BTV.gather(-1, part_BT[:, 1:, None]).sum(dtype=torch.float64))
    model.train(training)
    return total / windows_BT[:, 1:].numel()
