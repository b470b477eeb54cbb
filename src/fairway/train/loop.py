"""The training loop: one step after another until the budget of seconds or steps is used.

Each step is a function of (manifest, seed, step): the batch, the random numbers and the schedule depend on nothing else, so a run
resumed from a checkpoint repeats the uninterrupted one bit for bit on the same machine and threads when steps are its budget.
"""

import math
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fairway.core.budget import Budget, Seconds
from fairway.core.config import Config, Slot
from fairway.core.errors import CheckpointError, Interrupted, TrainingError
from fairway.core.log import Event, Listener
from fairway.core.seed import derive
from fairway.core.storage import Journal, fault_point
from fairway.data.batches import Batch, Batches
from fairway.loss.next_token import NextToken, NextTokenConfig, next_token
from fairway.model.lm import LanguageModel
from fairway.model.parts import after_step
from fairway.optim.parts import OptimizerConfig, ScheduleConfig
from fairway.train.average import Average, AverageConfig
from fairway.train.checkpoint import CHECKPOINTS, latest_checkpoint, save_checkpoint
from fairway.train.clock import Clock
from fairway.train.meter import Meter
from fairway.train.numerics import PrecisionConfig, RecomputeConfig
from fairway.train.parts import Hook, global_norm
from fairway.train.validation import ValidationConfig


class TrainConfig(Config):
    """Every choice of training."""

    batch: int = Field(default=16, ge=1)
    """Sequences per optimizer step."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Sequences per forward pass; smaller ones save memory. Default: the whole batch."""
    optimizer: Annotated[OptimizerConfig, Slot("fairway.optim.optimizer", "muon")] = Field(
        default="muon", validate_default=True
    )
    schedule: Annotated[ScheduleConfig, Slot("fairway.optim.schedule", "trapezoid")] = Field(
        default="trapezoid", validate_default=True
    )
    precision: Annotated[PrecisionConfig, Slot("fairway.train.precision", "bf16")] = Field(
        default="bf16", validate_default=True
    )
    recompute: Annotated[RecomputeConfig, Slot("fairway.train.recompute", "none")] = Field(
        default="none", validate_default=True
    )
    loss: NextTokenConfig = NextTokenConfig()
    validation: ValidationConfig = ValidationConfig()
    average: AverageConfig = AverageConfig()
    clip: float = Field(default=1.0, gt=0)
    """Largest Euclidean norm of all gradients together."""
    isolate_documents: bool = False
    """Hide earlier documents of a sequence from later ones."""
    compile: bool = False
    """Compile the model; pays only in runs much longer than the minute it takes."""
    checkpoint_every: Seconds = 60.0
    """Seconds between checkpoints."""
    patience: int = Field(default=20, ge=1)
    """Steps in a row whose gradients may be infinite or NaN, and are skipped, before the run stops."""


class Loop:
    """Trains a model; `run` returns the weights to keep."""

    def __init__(
        self,
        model: LanguageModel,
        batches: Batches,
        config: TrainConfig,
        budget: Budget,
        seed: int,
        folder: Path,
        facts: dict[str, Any],
        meter: Meter,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.model, self.batches, self.config, self.hooks = model, batches, config, hooks
        self.seed, self.folder, self.facts, self.meter = seed, folder, facts, meter
        config.recompute.apply(model)
        self.precision = config.precision.build(model, model.device)
        self.optimizer = config.optimizer.build(model)
        self.precision.attach(self.optimizer)
        self.average = Average(model, config.average)
        self.clock = Clock(budget)
        self.skipped = 0
        self.forward = torch.compile(model) if config.compile else model
        self._stop = False

    @property
    def step(self) -> int:
        """Steps done."""
        return self.clock.step

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.clock.progress

    def run(self, listener: Listener) -> dict[str, Tensor]:
        """Trains to the end of the budget, from the newest checkpoint if there is one; returns the weights to keep.

        Raises `Interrupted` after saving when the process is asked to stop, and `TrainingError` when training diverged.
        """
        previous = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with Journal(self.folder / "metrics.jsonl") as journal:
                finished = self._resume(journal, listener)
                return self.average.weights() if finished else self._run(journal, listener)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _run(self, journal: Journal, listener: Listener) -> dict[str, Tensor]:
        for hook in self.hooks:
            hook.start(self)
        self.model.train()
        saved = self.clock.elapsed
        while not self.clock.done:
            figures = self._step()
            journal.append(figures)
            listener(Event("train", self.progress, figures))
            if self._stop:
                self._save(journal)
                raise Interrupted(f"Stopped after step {self.step}; run the same command again to go on from there.")
            if self.clock.elapsed - saved >= self.config.checkpoint_every and not self.clock.done:
                self._save(journal)
                saved = self.clock.elapsed
        for hook in self.hooks:
            hook.finish(self)
        self._save(journal, finished=True)
        return self.average.weights()

    def _step(self) -> dict[str, Any]:
        progress = self.progress
        torch.manual_seed(derive(self.seed, "step", self.step))
        batch = self.batches.at(self.step, self.config.batch, self.model.config.context)
        self.optimizer.zero_grad()
        loss, statistics = self._gradients(batch, progress)
        parameters = self.optimizer.parameters()
        self.precision.unscale(parameters)
        norm = float(global_norm(parameters))
        finite = math.isfinite(norm) and math.isfinite(loss)
        self.precision.update(finite)
        factor = self.config.schedule.factor(progress)
        figures: dict[str, Any] = {"train/loss": loss, "lr": factor, "grad_norm": norm}
        if finite:
            self._update(parameters, norm, factor, progress, statistics)
            for hook in self.hooks:
                figures |= hook.stepped(self)
        self._count_skip(finite)
        seconds = self.clock.tick()
        tokens = batch.tokens_BT[:, 1:].numel()
        figures |= self.meter.figures(loss, tokens, seconds)
        timing = {"step": self.step, "elapsed": self.clock.elapsed, "step_seconds": seconds, "tokens": tokens}
        fault_point("loop.stepped")
        scalars = {name: float(value) for name, value in statistics.items() if value.numel() == 1}
        return figures | scalars | timing | {"skipped": 0 if finite else 1}

    def _gradients(self, batch: Batch, progress: float) -> tuple[float, dict[str, Tensor]]:
        """Accumulates the gradients of a batch; returns its mean loss in nats per token and averaged statistics."""
        tokens_BT, starts_BT = batch.tokens_BT.to(self.model.device), batch.starts_BT.to(self.model.device)
        size = self.config.micro_batch or len(tokens_BT)
        total = tokens_BT[:, 1:].numel()
        nats, statistics = 0.0, {}
        for start in range(0, len(tokens_BT), size):
            part = Batch(tokens_BT[start : start + size], starts_BT[start : start + size])
            share = part.tokens_BT[:, 1:].numel() / total
            starts = part.starts_BT[:, :-1] if self.config.isolate_documents else None
            with self.precision.forward():
                output = self.forward(part.tokens_BT[:, :-1], starts_BT=starts, progress=progress)
                hidden_ND = output.hidden_BTD.flatten(0, 1)
                target_N = part.tokens_BT[:, 1:].flatten()
                main = self._next_token(hidden_ND, target_N, progress, 1.0 / total, part)
                extra = output.aux.loss() * share
                for hook in self.hooks:
                    extra = extra + sum(hook.loss(self, part, output).values()) * share
            self.precision.scale(main.loss + extra).backward()
            nats += float(main.nats) * share
            for name, value in output.aux.statistics.items():
                statistics[name] = statistics.get(name, 0.0) + value.detach() * share
        return nats, statistics

    def _next_token(
        self, hidden_ND: Tensor, target_N: Tensor, progress: float, weight: float, part: Batch
    ) -> NextToken:
        head, embedding = self.model.head, self.model.embedding
        parameters = [*embedding.parameters(), *head.parameters()]
        cap = head.config.softcap
        logits = partial(head.uncapped, embedding=embedding, progress=progress)
        own = math.prod(hook.next_token_weight(self) for hook in self.hooks)
        terms = [term for hook in self.hooks if (term := hook.term(self, part)) is not None]
        return next_token(logits, parameters, hidden_ND, target_N, self.config.loss, cap, weight, terms, own)

    def _update(
        self, parameters: list[torch.nn.Parameter], norm: float, factor: float, progress: float, statistics: dict
    ) -> None:
        if any([hook.gradients(self) for hook in self.hooks]):
            return
        if norm > self.config.clip:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, self.config.clip / norm)
        self.optimizer.step(factor, progress)
        self.precision.after_step()
        after_step(self.model, statistics)
        self.average.update(progress, self.clock.planned_steps())

    def _count_skip(self, finite: bool) -> None:
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped >= self.config.patience:
            raise TrainingError(
                f"The gradients were infinite or NaN for {self.skipped} steps in a row, up to step {self.step + 1}. The last "
                "checkpoint is intact; a lower learning rate or train.precision.kind=fp32 would help."
            )

    def _save(self, journal: Journal, *, finished: bool = False) -> None:
        journal.sync()
        groups = {
            "model": self._tensors(),
            "optimizer": self.optimizer.state(),
            "average": self.average.state(),
            "precision": self.precision.state(),
            **{f"hook{index}": hook.state() for index, hook in enumerate(self.hooks)},
        }
        counts = {"elapsed": self.clock.elapsed, "skipped": self.skipped, "finished": finished}
        save_checkpoint(self.folder / CHECKPOINTS, self.step, groups, {**self.facts, **counts})

    def _resume(self, journal: Journal, listener: Listener) -> bool:
        """Goes on from the newest checkpoint; returns whether it ended a finished run."""
        checkpoint = latest_checkpoint(self.folder / CHECKPOINTS, listener)
        if checkpoint is None:
            journal.keep(lambda record: False)
            return False
        changed = {name: (checkpoint.facts.get(name), value) for name, value in self.facts.items()}
        changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
        if changed:
            told = "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in changed.items())
            raise CheckpointError(f"{checkpoint.path} belongs to another run: {told}. Use another run folder.")
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(checkpoint.groups["model"][name])
        self.optimizer.load_state(checkpoint.groups["optimizer"])
        self.average.load_state(checkpoint.groups["average"])
        self.precision.load_state(checkpoint.groups["precision"])
        for index, hook in enumerate(self.hooks):
            hook.load_state(checkpoint.groups[f"hook{index}"])
        self.skipped = int(checkpoint.facts["skipped"])
        self.clock = Clock(self.clock.budget, step=checkpoint.step, elapsed=checkpoint.facts["elapsed"])
        journal.keep(lambda record: record["step"] <= checkpoint.step)
        listener(Event("train", self.progress, message=f"Going on from step {checkpoint.step}."))
        return bool(checkpoint.facts["finished"])

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def _ask_to_stop(self, number: int, frame: object) -> None:  # noqa: ARG002
        self._stop = True
