"""Draws a job's events: a live line with bar, figures and time left on a terminal, a line now and then elsewhere.

Everything goes to stderr, so that stdout holds results alone.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from fairway.core.log import Event, Listener

SECONDS_BETWEEN_LINES = 15.0

_SHOWN: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("step", lambda value: f"step {value:,.0f}"),
    ("train/loss", lambda value: f"loss {value:.3f}"),
    ("train/bpb", lambda value: f"{value:.3f} bpb"),
    ("val/bpb", lambda value: f"val {value:.4f} bpb"),
    ("bits_per_byte", lambda value: f"{value:.4f} bpb"),
    ("bytes", lambda value: f"{value:,.0f} bytes"),
    ("tokens/s", lambda value: f"{value:,.0f} tok/s"),
    ("mfu", lambda value: f"MFU {100 * value:.0f} %"),
)


@contextmanager
def progress(stream: TextIO | None = None) -> Iterator[Listener]:
    """A listener that draws on `stream` (stderr) while the block runs."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield _Lines(stream)
        return
    columns = (
        TextColumn("[bold]{task.description:<9}"),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
    )
    with _TwoLines(*columns, console=Console(file=stream), refresh_per_second=2, transient=True) as bar:
        yield _Bars(bar)


def described(figures: dict[str, float]) -> str:
    """The figures worth a glance, in a fixed order."""
    if "tokens/s" not in figures and figures.get("step_seconds") and "tokens" in figures:
        figures = {**figures, "tokens/s": figures["tokens"] / figures["step_seconds"]}
    return "  ".join(show(figures[name]) for name, show in _SHOWN if name in figures)


class _TwoLines(Progress):
    """The bar on one line, its figures on the next, so that neither is cut on a narrow terminal."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(f"  {task.fields['figures']}", style="dim") for task in self.tasks if task.fields["figures"])


class _Bars:
    """One bar for the phase at hand; a finished phase leaves a line."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task: TaskID | None = None
        self.phase = self.message = ""
        self.figures: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if event.phase != self.phase or self.task is None:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.phase, self.figures, self.message = event.phase, {}, ""
            self.task = self.bar.add_task(event.phase, total=1.0 if event.fraction is not None else None, figures="")
        if event.message and event.message != self.message:
            self.message = event.message
            self.bar.console.print(event.message, highlight=False, markup=False)
        self.figures |= event.figures
        total = 1.0 if event.fraction is not None else None
        self.bar.update(self.task, completed=event.fraction or 0.0, total=total, figures=described(self.figures))


class _Lines:
    """A line at the start of each phase, for each new message, and every few seconds in between."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.phase = self.message = ""
        self.figures: dict[str, float] = {}
        self.last = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        changed = event.phase != self.phase
        if changed:
            self.phase, self.figures, self.message = event.phase, {}, ""
        self.figures |= event.figures
        news = bool(event.message) and event.message != self.message
        if not (changed or news or event.fraction == 1.0 or now - self.last >= SECONDS_BETWEEN_LINES):
            return
        self.last = now
        self.message = event.message or self.message
        share = "" if event.fraction is None else f"{100 * event.fraction:.0f} %"
        parts = (f"{event.phase}:", share, described(self.figures), event.message)
        print("  ".join(part for part in parts if part), file=self.stream, flush=True)
