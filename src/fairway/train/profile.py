"""Where the milliseconds of a step go: by part of the loop, and by operator.

Parts are timed by the wall clock, on a GPU after waiting for it, so a profiled run is a little slower. Operators are
recorded by torch's profiler over a few steps.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

_WARM, _RECORDED, _SHOWN = 3, 4, 15


@dataclass(frozen=True)
class Profile:
    """Milliseconds a step."""

    steps: int
    milliseconds: float
    """A whole step, the first one left out."""
    parts: dict[str, float] = field(default_factory=dict)
    operators: dict[str, float] = field(default_factory=dict)
    """The most expensive ones, by their own time."""


class Stopwatch:
    """Times named parts of the loop; does nothing unless switched on."""

    def __init__(self, device: torch.device | None = None) -> None:
        """Times on `device`; without one, nothing."""
        self.device = device
        self.parts: dict[str, float] = {}
        self.steps, self.seconds = 0, 0.0
        self._last = 0.0
        self._profiler: Any = None

    def __call__(self, part: str) -> AbstractContextManager[None]:
        """Adds the time of a block to a part."""
        return nullcontext() if self.device is None else self._timed(part)

    def step(self) -> None:
        """Ends a step."""
        if self.device is None:
            return
        now = time.perf_counter()
        if self._last:
            self.steps += 1
            self.seconds += now - self._last
        else:
            self.parts.clear()
            self._profiler = self._recorder()
            self._profiler.start()
        self._profiler.step()
        self._last = time.perf_counter() if self.steps == 0 else now

    def result(self) -> Profile:
        """Everything measured; ends the measurement."""
        steps = max(1, self.steps)
        operators: dict[str, float] = {}
        if self._profiler is not None:
            self._profiler.stop()
            gpu = self.device is not None and self.device.type == "cuda"
            name = "self_device_time_total" if gpu else "self_cpu_time_total"
            every = [one for one in self._profiler.key_averages() if not one.key.startswith("ProfilerStep")]
            found = sorted(every, key=lambda one: -getattr(one, name))[:_SHOWN]
            recorded = max(1, min(_RECORDED, self.steps - _WARM))
            operators = {one.key: getattr(one, name) / 1000 / recorded for one in found}
            self._profiler = None
        parts = {part: 1000 * seconds / steps for part, seconds in self.parts.items()}
        whole = 1000 * self.seconds / steps
        parts["other"] = max(0.0, whole - sum(parts.values()))
        return Profile(self.steps, whole, parts, operators)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = self._now()
        yield
        self.parts[part] = self.parts.get(part, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _recorder(self) -> Any:
        gpu = self.device is not None and self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
        return profile(activities=activities, schedule=schedule(wait=0, warmup=_WARM, active=_RECORDED, repeat=1))
