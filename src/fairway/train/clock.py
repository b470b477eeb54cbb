"""How far a run has come: by the wall clock, or by steps.

Progress is time spent over time allowed, or steps done over steps planned; schedules and staged features see nothing
else. A run may be cut into several trainings of one length, and then progress is that of the training at hand.
"""

import math
import time
from dataclasses import dataclass

from fairway.core.budget import Budget
from fairway.core.errors import BudgetError


@dataclass(frozen=True)
class Course:
    """One training, or several of the same length, of which all but the first begin where that one stood early on."""

    trainings: int = 1
    rewind: float = 0.0
    """Share of a training that lies behind it where the later ones begin, in [0, 1)."""

    def after(self, trainings: int) -> float:
        """Lengths of a whole training that the first few take."""
        return 1.0 + (trainings - 1) * (1.0 - self.rewind)

    @property
    def length(self) -> float:
        """Lengths of a whole training that all of them take."""
        return self.after(self.trainings)

    def divided(self, steps: int) -> tuple[int, int]:
        """Steps of a training, and the step that the later ones begin at: the most that fit into the steps of a run.

        Raises `BudgetError` where there are too few.
        """
        for whole in range(math.ceil(steps / self.length) + 1, 0, -1):
            early = self._early(whole)
            if early < whole and whole + (self.trainings - 1) * (whole - early) <= steps:
                return whole, early
        raise BudgetError(
            f"{steps} steps cannot be divided into {self.trainings} trainings of which the later ones begin after "
            f"{100 * self.rewind:g} %; budget.steps={self._least()} would work."
        )

    def steps(self, whole: int) -> int:
        """Steps of a run whose trainings have so many."""
        return whole + (self.trainings - 1) * (whole - self._early(whole))

    def _early(self, whole: int) -> int:
        return math.ceil(self.rewind * whole - 1e-9)

    def _least(self) -> int:
        whole = 1
        while self._early(whole) >= whole:
            whole += 1
        return self.steps(whole)


@dataclass(frozen=True)
class Start:
    """Where the training at hand began."""

    training: int = 0
    """Trainings before it."""
    step: int = 0
    """Steps of the run before it."""
    elapsed: float = 0.0
    """Seconds of the run before it."""
    behind: int = 0
    """Steps of the training that lay behind it already."""
    progress: float = 0.0
    """Share of the training that lay behind it already."""


class Clock:
    """Counts the steps and seconds of a run, and stops each of its trainings before the budget is overrun."""

    def __init__(
        self,
        budget: Budget,
        *,
        step: int = 0,
        elapsed: float = 0.0,
        course: Course = Course(),
        start: Start = Start(),
    ) -> None:
        """`step` and `elapsed` are those of the whole run; raises `BudgetError` where its course has no room."""
        self.budget, self.course, self.start = budget, course, start
        self.step = step
        self._steps, self._early = (0, 0) if budget.steps is None else course.divided(budget.steps)
        self._zero = time.monotonic() - elapsed
        self._step_start = time.monotonic()
        self._longest = 0.0

    def at(self, step: int, elapsed: float, start: Start) -> "Clock":
        """A clock of the same run that stands elsewhere."""
        return Clock(self.budget, step=step, elapsed=elapsed, course=self.course, start=start)

    @property
    def elapsed(self) -> float:
        """Seconds of the run so far, those before a resume included."""
        return time.monotonic() - self._zero

    @property
    def training_step(self) -> int:
        """Steps of the training at hand that are done."""
        return self.start.behind + self.step - self.start.step

    @property
    def progress(self) -> float:
        """Share of the training at hand that is done, in [0, 1]."""
        if self.budget.steps is not None:
            return min(1.0, self.training_step / self._steps)
        start, room = self.start, self._end - self.start.elapsed
        spent = (self.elapsed - start.elapsed) / room if room > 0 else 1.0
        return min(1.0, start.progress + (1.0 - start.progress) * spent)

    @property
    def share(self) -> float:
        """Share of the whole run that is done, in [0, 1]."""
        if self.budget.steps is not None:
            return min(1.0, self.step / self.course.steps(self._steps))
        return min(1.0, self.elapsed / self.budget.seconds)

    @property
    def early(self) -> bool:
        """Whether the training at hand has come to where the later ones begin."""
        if self.budget.steps is not None:
            return self.training_step >= self._early
        return self.progress >= self.course.rewind

    @property
    def done(self) -> bool:
        """Whether another step of the training at hand would not fit."""
        if self.budget.steps is not None:
            return self.training_step >= self._steps
        return self.elapsed + self._longest > self._end

    @property
    def last(self) -> bool:
        """Whether no training follows the one at hand."""
        return self.start.training == self.course.trainings - 1

    def planned_steps(self) -> float:
        """Steps that a whole training will take, estimated from the pace so far where time binds."""
        if self.budget.steps is not None:
            return self._steps
        step = self.training_step
        return max(step + 1, step / max(self.progress, 1e-9)) if step else 1.0

    def tick(self) -> float:
        """Ends a step; returns its seconds."""
        now = time.monotonic()
        seconds, self._step_start = now - self._step_start, now
        self.step += 1
        if self.step > 1:
            self._longest = max(seconds, 0.95 * self._longest)
        return seconds

    def begin_next(self, behind: int, progress: float) -> None:
        """Ends the training at hand and begins the next, of which so much lies behind it."""
        assert not self.last
        self.start = Start(self.start.training + 1, self.step, self.elapsed, behind, progress)
        self._step_start = time.monotonic()

    @property
    def _end(self) -> float:
        """Seconds of the run at which the training at hand must be over."""
        return self.budget.seconds * self.course.after(self.start.training + 1) / self.course.length
