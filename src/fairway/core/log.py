"""What a long job tells whoever watches it: events with a phase, a fraction and figures, and rare notices.

Nothing below the command line prints. A job calls its `Listener`; the command line draws bars from
what it hears, and tests collect it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

logger = logging.getLogger("fairway")


@dataclass(frozen=True)
class Event:
    """One sign of progress."""

    phase: str
    """prepare, train, calibrate, quantise, encode, evaluate, ..."""
    fraction: float | None = None
    """Share of the phase that is done, in [0, 1]; None where it is not known."""
    figures: dict[str, float] = field(default_factory=dict)
    """Current figures by name, such as `train/loss` or `tokens/s`."""
    message: str = ""
    """A sentence for people; empty for a mere tick."""


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that ignores everything."""


@cache
def say_once(message: str) -> None:
    """Logs a notice the first time it is said in this process, such as a fast path not taken and why."""
    logger.info(message)
