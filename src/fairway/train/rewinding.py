"""Several trainings in one run: each begins again from how the first stood at an early step.

Set back are weights, optimizer, averages, loss scale, spike guard, hooks, the place in the data, the random numbers
and, by the clock, every schedule; what remains is what the hook that asked for it carries over, such as masks.
Frankle et al. 2020 (arXiv:1912.05671).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fairway.core.errors import ConfigError
from fairway.core.log import Event, Listener
from fairway.train.checkpoint import Groups
from fairway.train.clock import Course, Start
from fairway.train.parts import Hook
from fairway.train.saving import counts_of, groups_of, put

if TYPE_CHECKING:
    from fairway.train.loop import Loop

_EARLY = "early-"


def course_of(hooks: Sequence[Hook]) -> Course:
    """The course that one of the hooks asks for; raises `ConfigError` where several ask."""
    courses = [hook.course() for hook in hooks if hook.course() != Course()]
    if len(courses) > 1:
        raise ConfigError(f"{len(courses)} techniques want to divide the run into trainings; one of them would work.")
    return courses[0] if courses else Course()


class Rewinding:
    """Remembers how a loop stood at the early step, and puts it back there."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self.course = course_of(hooks)
        self._asking = [hook for hook in hooks if hook.course() != Course()]
        self._groups: dict[str, dict[str, Tensor]] = {}
        self._counts: dict[str, Any] = {}

    def remember(self, loop: "Loop") -> None:
        """Takes down how the loop stands, unless that was done; every rank must call this."""
        if self._groups or self.course.trainings == 1:
            return
        self._groups = _copied(groups_of(loop, self._asking))
        self._counts = {**counts_of(loop), "step": loop.clock.training_step, "progress": loop.clock.progress}

    def again(self, loop: "Loop", listener: Listener) -> None:
        """Puts the loop back and hands what it had come to to the hook that asked; every rank must call this."""
        trained = {name: weight.detach().clone() for name, weight in loop.average.weights().items()}
        put(loop, _copied(self._groups), self._counts)
        loop.clock.begin_next(self._counts["step"], self._counts["progress"])
        for hook in self._asking:
            hook.again(loop, trained)
        loop.average.mask(loop.optimizer.masks)
        turn = f"Training {loop.clock.start.training + 1} of {self.course.trainings}"
        listener(Event("train", loop.clock.share, message=f"{turn} begins at step {self._counts['step']} again."))

    def state(self, loop: "Loop") -> tuple[Groups, dict[str, Any]]:
        """What a checkpoint needs beside the loop's own: groups of tensors, and facts."""
        if self.course.trainings == 1:
            return {}, {}
        groups = {_EARLY + name: tensors for name, tensors in self._groups.items()}
        return groups, {"early": self._counts, "start": vars(loop.clock.start)}

    def load_state(self, groups: Groups, facts: Mapping[str, Any]) -> Start:
        """Goes on from `state()`; returns where the training at hand began."""
        if self.course.trainings == 1:
            return Start()
        early = {name: dict(tensors) for name, tensors in groups.items() if name.startswith(_EARLY)}
        self._groups = {name.removeprefix(_EARLY): tensors for name, tensors in early.items()}
        self._counts = dict(facts["early"])
        return Start(**facts["start"])


def _copied(groups: Groups) -> dict[str, dict[str, Tensor]]:
    return {group: {name: one.detach().clone() for name, one in held.items()} for group, held in groups.items()}
