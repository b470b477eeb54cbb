"""How a command ends: every foreseen error as one message and an exit code, every stop with a word on how to go on."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fairway.core.errors import FairwayError, Interrupted

FAILED = 2
STOPPED = Interrupted.exit_code

_resume_command = ""


def can_resume_by(command: str) -> None:
    """Names the command that goes on from here, for the message of a stop."""
    global _resume_command
    _resume_command = command


def ends_well(action: Callable[[], int]) -> int:
    """Runs an action and turns what stops it into a message on stderr and an exit code."""
    can_resume_by("")
    try:
        with _termination_as_interrupt():
            code = action()
            sys.stdout.flush()
            return code
    except Interrupted as error:
        return _say(_with_resume(str(error)), STOPPED)
    except FairwayError as error:
        return _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _say(_with_resume("Stopped."), STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a command the way Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _with_resume(message: str) -> str:
    if not _resume_command or _resume_command in message:
        return message
    return f"{message} Go on with: {_resume_command}"


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
