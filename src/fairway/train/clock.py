"""How far a run has come: by the wall clock, or by steps.

Progress is time spent over time allowed, or steps done over steps planned; schedules and staged features see nothing
else.
"""

import time

from fairway.core.budget import Budget


class Clock:
    """Counts the seconds of training, and stops it before the budget is overrun."""

    def __init__(self, budget: Budget, *, step: int = 0, elapsed: float = 0.0) -> None:
        self.budget = budget
        self.step = step
        self._start = time.monotonic() - elapsed
        self._step_start = time.monotonic()
        self._longest = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        if self.budget.steps is not None:
            return min(1.0, self.step / self.budget.steps)
        return min(1.0, self.elapsed / self.budget.seconds)

    @property
    def done(self) -> bool:
        """Whether another step would not fit."""
        if self.budget.steps is not None:
            return self.step >= self.budget.steps
        return self.elapsed + self._longest > self.budget.seconds

    def planned_steps(self) -> float:
        """Steps the whole run will take, estimated from the pace so far where time binds."""
        if self.budget.steps is not None:
            return self.budget.steps
        return max(self.step + 1, self.step / max(self.progress, 1e-9)) if self.step else 1.0

    def tick(self) -> float:
        """Ends a step; returns its seconds."""
        now = time.monotonic()
        seconds, self._step_start = now - self._step_start, now
        self.step += 1
        if self.step > 1:
            self._longest = max(seconds, 0.95 * self._longest)
        return seconds
