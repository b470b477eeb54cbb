"""The training loop: one step after another until the budget of seconds or steps is used.

Each step is a function of (manifest, seed, step): the batch, the random numbers and the schedule depend on nothing
else, so a run resumed from a checkpoint repeats the uninterrupted one bit for bit on the same machine, threads and
ranks when steps are its budget. Every decision (to skip, to save, to stop) is taken from numbers that all ranks
share.
"""

import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairway.core.budget import Budget
from fairway.core.errors import Interrupted, TrainingError
from fairway.core.log import Event, Listener, silent
from fairway.core.seed import derive
from fairway.core.storage import Journal, fault_point
from fairway.data.batches import Batch, Batches
from fairway.model.lm import LanguageModel
from fairway.model.parts import after_step
from fairway.optim.parts import RateScale
from fairway.train.average import Average
from fairway.train.clock import Clock
from fairway.train.distributed import ALONE, Team, beat
from fairway.train.forward import Forward
from fairway.train.guard import Guard
from fairway.train.layout import make_layout, require_shareable
from fairway.train.meter import Meter
from fairway.train.parts import Hook
from fairway.train.profile import Stopwatch
from fairway.train.rewinding import Rewinding
from fairway.train.saving import resume, save
from fairway.train.settings import TrainConfig, fitted
from fairway.train.warmup import warm_up


@dataclass(frozen=True)
class Moment:
    """What all ranks agree on before a step."""

    progress: float
    """Of the training at hand."""
    planned_steps: float
    """Of a whole training."""
    done: bool
    """Whether the training at hand is over."""
    save: bool
    stop: bool
    early: bool = False
    """Whether the training has come to where later ones begin."""


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
        team: Team = ALONE,
        scales: Mapping[str, RateScale] | None = None,
    ) -> None:
        """`scales`: muP's factors on the learning rates."""
        self.model, self.batches, self.config, self.hooks = model, batches, config, hooks
        self.seed, self.folder, self.facts, self.meter, self.team = seed, folder, facts, meter, team
        require_shareable(config, model.config.context, hooks, team)
        self.recompute = fitted(config.recompute, budget.memory)
        self.recompute.apply(model)
        self.precision = config.precision.build(model, model.device)
        self.layout = make_layout(model, config, scales, team)
        self.optimizer = self.layout.optimizer
        self.precision.attach(self.optimizer)
        self.average, self.guard = Average(model, config.average), Guard(config.guard)
        self.rewinding = Rewinding(hooks)
        self.clock, self.stopwatch = Clock(budget, course=self.rewinding.course), Stopwatch()
        self.skipped = self.tokens = 0
        self.inner = Forward(self, config, hooks)
        self.forward = self.layout.wrap(self.inner)
        self.progress = 0.0
        """Share of the training that was done when the step began, in [0, 1]; the same on every rank."""
        self._stop, self._saved = False, 0.0

    @property
    def step(self) -> int:
        """Steps done of the training at hand, which is the whole run unless a hook divides it."""
        return self.clock.training_step

    def run(self, listener: Listener) -> dict[str, Tensor]:
        """Trains to the end of the budget, from the newest checkpoint if there is one; returns the weights to keep.

        Raises `Interrupted` after saving when the process is asked to stop, and `TrainingError` when training diverged.
        """
        listener = listener if self.team.first else silent
        with self._stoppable():
            checkpoint = resume(self, listener)
            if checkpoint is None or not checkpoint.facts["finished"]:
                warm_up(self)
                with Journal(self.folder / "metrics.jsonl") if self.team.first else _nothing() as journal:
                    if journal is not None:
                        journal.keep(lambda record: record["step"] <= self.clock.step)
                    self._run(journal, listener)
        return self.average.weights()

    def _run(self, journal: Journal | None, listener: Listener) -> None:
        for hook in self.hooks:
            hook.start(self)
        self.model.train()
        self._saved = self.clock.elapsed
        self._train(journal, listener)
        while not self.clock.last:
            self.rewinding.again(self, listener)
            self._train(journal, listener)
        for hook in self.hooks:
            hook.finish(self)
        self._save(journal, finished=True)

    def _train(self, journal: Journal | None, listener: Listener) -> None:
        """The training at hand to its end."""
        while not (moment := self.agree()).done:
            if moment.early:
                self.rewinding.remember(self)
            if moment.save or moment.stop:
                self._save(journal)
            if moment.stop:
                step = self.clock.step
                raise Interrupted(f"Stopped after step {step}; run the same command again to go on from there.")
            figures = self.advance(moment)
            if journal is not None:
                journal.append(figures)
            listener(Event("train", self.clock.share, figures))
            self.stopwatch.step()
            beat()

    def agree(self) -> Moment:
        """The clock of the first rank decides, and a request to stop any rank."""
        clock, first = self.clock, float(self.team.first)
        due = clock.elapsed - self._saved >= self.config.checkpoint_every
        told = [clock.progress, clock.planned_steps(), float(clock.done), float(due), float(clock.early)]
        *agreed, stop = self.team.sum([*(first * value for value in told), float(self._stop)])
        done, due, early = (bool(value) for value in agreed[2:])
        return Moment(agreed[0], agreed[1], done, due, bool(stop), early)

    def advance(self, moment: Moment) -> dict[str, Any]:
        """One step from what all ranks agreed on; returns its figures. `run` calls it until the budget is spent."""
        self.progress = moment.progress
        with self.stopwatch("data"):
            batch, tokens = self.batch_at(moment.progress)
        torch.manual_seed(derive(self.seed, "step", self.step, *([self.team.rank] if self.team.rank else [])))
        loss, norm, statistics = self.accumulate(batch, moment.progress)
        finite = math.isfinite(norm) and math.isfinite(loss)
        self.precision.update(finite)
        taken = finite and self.guard.accepts(loss, norm)
        factor = self.config.schedule.factor(moment.progress)
        figures: dict[str, Any] = {"train/loss": loss, "lr": factor, "grad_norm": norm}
        if taken:
            self._update(norm, factor, moment, statistics)
            with self.stopwatch("hooks"):
                for hook in self.hooks:
                    figures |= hook.stepped(self)
                self.layout.settle()
        self._count_skip(finite)
        seconds = self.clock.tick()
        self.tokens += tokens
        figures |= self.meter.figures(loss, tokens, seconds)
        timing = {"step": self.clock.step, "elapsed": self.clock.elapsed, "step_seconds": seconds, "tokens": tokens}
        fault_point("loop.stepped")
        scalars = {name: float(value) for name, value in statistics.items() if value.numel() == 1}
        return figures | scalars | timing | {"skipped": 0 if taken else 1}

    def batch_at(self, progress: float) -> tuple[Batch, int]:
        """This rank's rows of the next batch, and the tokens of the whole batch."""
        rows, context = self.config.stages.shape(self.config.batch, self.model.config.context, progress)
        mine = rows // self.team.world
        first = -(-self.tokens // context) + self.team.rank * mine
        return self.batches.rows(first, mine, context), rows * context

    def accumulate(self, batch: Batch, progress: float) -> tuple[float, float, dict[str, Tensor]]:
        """Fills in the gradients of a batch; returns its mean loss in nats per token, their norm, mean statistics."""
        self.layout.zero_gradients()
        tokens_BT, starts_BT = batch.tokens_BT.to(self.model.device), batch.starts_BT.to(self.model.device)
        size, total = self.config.micro_batch or len(tokens_BT), tokens_BT[:, 1:].numel()
        nats = torch.zeros((), dtype=torch.float64, device=self.model.device)
        statistics: dict[str, Tensor] = {}
        for start in range(0, len(tokens_BT), size):
            part = Batch(tokens_BT[start : start + size], starts_BT[start : start + size])
            with self.layout.accumulating(start + size >= len(tokens_BT)):
                with self.stopwatch("forward"), self.precision.forward():
                    loss, mean, figures = self.forward(part, progress, total)
                with self.stopwatch("backward"):
                    self.precision.scale(loss).backward()
            share = part.tokens_BT[:, 1:].numel() / total
            nats += mean.double() * share
            for name, value in figures.items():
                statistics[name] = statistics.get(name, 0.0) + value.detach() * share
        with self.stopwatch("norm"):
            self.precision.unscale(self.layout.parameters.values())
            norm = self.layout.norm()
        (mean, *_), statistics = self.team.mean([float(nats)]), self.team.mean_tensors(statistics)
        return mean, norm, statistics

    def _update(self, norm: float, factor: float, moment: Moment, statistics: dict[str, Tensor]) -> None:
        replaced = [hook.gradients(self) for hook in self.hooks]
        if any(replaced):
            return
        if norm > self.config.clip:
            torch._foreach_mul_(self.layout.gradients(), self.config.clip / norm)
        with self.stopwatch("optimizer"):
            self.layout.update(factor, moment.progress)
        self.precision.after_step()
        after_step(self.model, statistics)
        with self.stopwatch("average"):
            self.average.update(moment.progress, moment.planned_steps)

    def _count_skip(self, finite: bool) -> None:
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped >= self.config.patience:
            step = self.clock.step + 1
            raise TrainingError(
                f"The gradients were infinite or NaN for {self.skipped} steps in a row, up to step {step}. "
                "The last checkpoint is intact; a lower learning rate or train.precision.kind=fp32 would help."
            )

    def _save(self, journal: Journal | None, *, finished: bool = False) -> None:
        if journal is not None:
            journal.sync()
        with self.stopwatch("save"):
            save(self, finished=finished)
        beat()
        self._saved = self.clock.elapsed

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """A signal asks the loop to stop after the step at hand."""
        previous = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask_to_stop(self, number: int, frame: object) -> None:  # noqa: ARG002
        self._stop = True


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
