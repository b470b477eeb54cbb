"""Every choice of training."""

from typing import Annotated, Literal

from pydantic import Field

from fairway.core.budget import Seconds
from fairway.core.config import Config, Slot
from fairway.loss.next_token import NextTokenConfig
from fairway.optim.parts import OptimizerConfig, ScheduleConfig
from fairway.train.average import AverageConfig
from fairway.train.guard import GuardConfig
from fairway.train.numerics import PrecisionConfig, RecomputeConfig
from fairway.train.stages import StagesConfig
from fairway.train.validation import ValidationConfig

RECOMPUTE = Slot("fairway.train.recompute", "none")


class TrainConfig(Config):
    """Every choice of training."""

    batch: int = Field(default=16, ge=1)
    """Sequences per optimizer step, over all ranks."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Sequences per forward pass of a rank; smaller ones save memory. Default: the whole batch."""
    stages: StagesConfig = StagesConfig()
    optimizer: Annotated[OptimizerConfig, Slot("fairway.optim.optimizer", "muon")] = Field(
        default="muon", validate_default=True
    )
    tuned_width: int | None = Field(default=None, ge=8)
    """Width at which the learning rates were tuned; muP carries them over to model.width."""
    schedule: Annotated[ScheduleConfig, Slot("fairway.optim.schedule", "trapezoid")] = Field(
        default="trapezoid", validate_default=True
    )
    precision: Annotated[PrecisionConfig, Slot("fairway.train.precision", "bf16")] = Field(
        default="bf16", validate_default=True
    )
    recompute: Annotated[RecomputeConfig, RECOMPUTE] = Field(default="none", validate_default=True)
    upcycle: str | None = None
    """Folder of a run of a dense model that a mixture of experts begins as: each expert a copy of its feed-forward."""
    loss: NextTokenConfig = NextTokenConfig()
    validation: ValidationConfig = ValidationConfig()
    average: AverageConfig = AverageConfig()
    guard: GuardConfig = GuardConfig()
    clip: float = Field(default=1.0, gt=0)
    """Largest Euclidean norm of all gradients together."""
    isolate_documents: bool = False
    """Hide earlier documents of a sequence from later ones."""
    compile: bool = False
    """Compile the model; pays only in runs much longer than the minute it takes."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of every shape before the clock starts, undone afterwards: what compiles does so outside the budget."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Where several ranks train: all weights on each, or slices of them."""
    share_updates: bool = True
    """With ddp: each rank updates, and keeps the optimizer's state of, its share of the parameters."""
    checkpoint_every: Seconds = 60.0
    """Seconds between checkpoints."""
    patience: int = Field(default=20, ge=1)
    """Steps in a row whose gradients may be infinite or NaN, and are skipped, before the run stops."""


def fitted(config: RecomputeConfig, memory: int | None) -> RecomputeConfig:
    """The recomputation that keeps to `budget.memory`: the optimal one, unless another was chosen by name."""
    if memory is None or config.kind not in ("none", "optimal") or getattr(config, "memory", None) is not None:
        return config
    found = RECOMPUTE.config("optimal").read({"kind": "optimal", "memory": memory})
    assert isinstance(found, RecomputeConfig)
    return found
