"""Several trainings in one run: all is as it was at the early step, budgets are divided, a cut changes nothing."""

import os
import signal
from collections.abc import Callable, Mapping
from itertools import count, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fairway.compress.prune.lottery import Config, Ticket
from fairway.compress.quantize import qat
from fairway.core.budget import Budget
from fairway.core.errors import BudgetError, ConfigError, Interrupted
from fairway.core.log import Event, silent
from fairway.core.storage import read_journal
from fairway.train.clock import Clock, Course
from fairway.train.loop import Loop
from fairway.train.parts import Hook, Trainee

MakeLoop = Callable[..., Loop]
UNTIMED = ("step", "elapsed", "step_seconds", "tokens/s")
EVERYTHING = (
    "precision.kind=fp16",
    "precision.scale=8",
    "precision.patience=3",
    "guard.sigmas=50",
    "guard.window=8",
    "average.start=0.1",
    "stages.batch=[[0, 0.5], [0.5, 1]]",
)
"""Settings under which every piece of the loop has a state that moves."""


class Again(Hook):
    """Asks for trainings that change nothing, so that each must repeat the first."""

    def __init__(self, trainings: int, rewind: float) -> None:
        self.asked = Course(trainings, rewind)
        self.trained: list[Mapping[str, Tensor]] = []

    def course(self) -> Course:
        return self.asked

    def again(self, loop: Trainee, trained: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        self.trained.append(trained)


class Draws(Hook):
    """Logs a random number of each step, and counts the steps it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def stepped(self, loop: Trainee) -> dict[str, float]:
        self.seen += 1
        return {"draw": float(torch.rand(())), "seen": self.seen, "at": loop.step}

    def state(self) -> dict[str, Tensor]:
        return {"seen": torch.tensor(self.seen)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.seen = int(state["seen"])


class Stop(Hook):
    """Asks the process to stop after some steps of the whole run."""

    def __init__(self, after: int) -> None:
        self.left = after

    def stepped(self, loop: Trainee) -> dict[str, float]:  # noqa: ARG002
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGINT)
        return {}


def figures(loop: Loop) -> list[dict[str, Any]]:
    """What was logged of every step, less what depends on the moment."""
    records = read_journal(loop.folder / "metrics.jsonl")
    return [{name: value for name, value in record.items() if name not in UNTIMED} for record in records]


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("rewind", [0.0, 0.25])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "soap"])
def test_a_training_that_changes_nothing_repeats_the_first_bit_for_bit(
    make_loop: MakeLoop, optimizer: str, rewind: float
) -> None:
    hook, choice = Again(3, rewind), f"optimizer.kind={optimizer}"
    whole, early = 12, round(12 * rewind)
    loop = make_loop(choice, *EVERYTHING, steps=whole + 2 * (whole - early), hooks=[hook, Draws()])
    weights, steps = loop.run(silent), figures(loop)
    assert [record["at"] for record in steps] == [*range(whole), *range(early, whole), *range(early, whole)]
    assert steps[whole : 2 * whole - early] == steps[early:whole] == steps[2 * whole - early :]
    alone = make_loop(choice, *EVERYTHING, steps=whole, folder="alone", hooks=[Hook(), Draws()])
    wanted = alone.run(silent)
    assert figures(alone) == steps[:whole]
    assert same(weights, wanted)
    assert same(loop.optimizer.state(), alone.optimizer.state())
    assert all(same(trained, wanted) for trained in hook.trained)
    assert loop.tokens == alone.tokens


@pytest.mark.parametrize("cut", [1, 5, 12, 14, 21, 29])
def test_a_run_cut_in_any_of_its_trainings_goes_on_bit_for_bit(make_loop: MakeLoop, cut: int) -> None:
    config = Config.model_validate({"sparsity": 0.5, "rounds": 2, "rewind": 0.25, "control": "random"})
    rounding = qat.Config.model_validate({"start": 0.5})
    hooks: Callable[[], list[Hook]] = lambda: [*config.hooks(3), *rounding.hooks()]  # noqa: E731
    whole = make_loop(*EVERYTHING, steps=30, folder="whole", hooks=hooks())
    wanted = whole.run(silent)
    with pytest.raises(Interrupted):
        make_loop(*EVERYTHING, steps=30, folder="cut", hooks=[*hooks(), Stop(cut)]).run(silent)
    rest = make_loop(*EVERYTHING, steps=30, folder="cut", hooks=[*hooks(), Hook()])
    assert same(rest.run(silent), wanted)
    assert same(rest.optimizer.state(), whole.optimizer.state())
    assert figures(rest) == figures(whole)
    assert same(rest.hooks[0].state(), whole.hooks[0].state())


def ticket_run(make_loop: MakeLoop, control: str, **changes: Any) -> tuple[Loop, Ticket, dict[str, Tensor]]:
    settings = {"sparsity": 0.75, "rounds": 2, "rewind": 0.25, "control": control, **changes}
    hook = Config.model_validate(settings).hooks(3)[0]
    assert isinstance(hook, Ticket)
    loop = make_loop("average.start=0.1", steps=30, folder=control, hooks=[hook])
    return loop, hook, loop.run(silent)


def test_controls_share_every_training_with_the_ticket_but_the_last(make_loop: MakeLoop) -> None:
    runs = {control: ticket_run(make_loop, control) for control in ("ticket", "reinitialised", "random")}
    steps = {control: figures(loop) for control, (loop, _, _) in runs.items()}
    for control in ("reinitialised", "random"):
        assert steps[control][:21] == steps["ticket"][:21]
        assert steps[control][21]["train/loss"] != steps["ticket"][21]["train/loss"]
        assert steps[control][21]["lr"] == steps["ticket"][21]["lr"]
    masks = {control: hook.masks for control, (_, hook, _) in runs.items()}
    assert same(masks["reinitialised"], masks["ticket"])
    assert not same(masks["random"], masks["ticket"])
    for name, mask in masks["ticket"].items():
        assert float(masks["random"][name].sum()) == float(mask.sum()) == mask.numel() - int(0.75 * mask.numel())
    for _, hook, weights in runs.values():
        assert all(not weights[name][mask == 0].any() for name, mask in hook.masks.items())


class Look(Hook):
    """Keeps what a training begins from: weights after the ticket has drawn them, and the optimizer's state."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def next_token_weight(self, loop: Trainee) -> float:
        if loop.step == 3:
            weights = {name: value.detach().clone() for name, value in loop.model.named_parameters()}
            self.found.append(weights | {name: value.clone() for name, value in loop.optimizer.state().items()})
        return 1.0


def test_a_ticket_begins_from_the_weights_and_the_optimizer_of_step_k_under_its_mask(make_loop: MakeLoop) -> None:
    look, hook = Look(), Config.model_validate({"sparsity": 0.75, "rounds": 2, "rewind": 0.25}).hooks(3)[0]
    assert isinstance(hook, Ticket)
    make_loop(steps=30, hooks=[hook, look]).run(silent)
    first, *_, last = look.found
    assert len(look.found) == 3
    assert any(first[name].any() for name in first if name.endswith("/momentum"))
    for name, value in first.items():
        mask = hook.masks.get(name.removesuffix("/momentum"))
        assert torch.equal(last[name], value if mask is None else value * mask)


def test_time_is_divided_over_the_trainings_and_not_overrun(
    make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = count(step=0.01)
    monkeypatch.setattr("fairway.train.clock.time.monotonic", lambda: next(readings))
    loop = make_loop(steps=None, seconds=10.0, hooks=[Again(3, 0.25), Draws()])
    loop.run(silent)
    records = read_journal(loop.folder / "metrics.jsonl")
    begins = [0, *(i for i in range(1, len(records)) if records[i]["at"] <= records[i - 1]["at"]), len(records)]
    lengths = [later - sooner for sooner, later in pairwise(begins)]
    assert len(lengths) == 3
    assert 9.5 < records[-1]["elapsed"] <= 10.0
    assert lengths[1] == pytest.approx(0.75 * lengths[0], abs=2)
    assert lengths[2] == pytest.approx(0.75 * lengths[0], abs=2)
    assert records[begins[1]]["lr"] == records[begins[2]]["lr"] == records[records[begins[1]]["at"]]["lr"]
    assert all(records[end - 1]["lr"] < 0.3 for end in begins[1:])


def test_a_stall_in_one_training_leaves_the_others_their_time() -> None:
    clock = Clock(Budget(seconds=100.0), course=Course(4, 0.0), elapsed=20.0)
    assert not clock.done
    stalled = clock.at(3, 60.0, clock.start)
    assert stalled.done
    stalled.begin_next(0, 0.0)
    assert stalled.done
    stalled.begin_next(0, 0.0)
    assert not stalled.done
    assert stalled.progress == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    ("steps", "trainings", "rewind", "found"),
    [(600, 4, 0.05, (156, 8)), (30, 3, 0.25, (12, 3)), (7, 1, 0.0, (7, 0)), (8, 4, 0.0, (2, 0)), (9, 4, 0.5, (3, 2))],
)
def test_steps_are_divided_into_trainings_of_one_length(
    steps: int, trainings: int, rewind: float, found: tuple[int, int]
) -> None:
    course = Course(trainings, rewind)
    assert course.divided(steps) == found
    assert course.steps(found[0]) == found[0] + (trainings - 1) * (found[0] - found[1]) <= steps
    assert all(course.steps(longer) > steps for longer in range(found[0] + 1, found[0] + 3))


def test_too_few_steps_and_two_courses_are_refused_with_what_would_work(make_loop: MakeLoop) -> None:
    with pytest.raises(BudgetError, match=r"budget\.steps=4 would work"):
        make_loop(steps=3, hooks=[Again(4, 0.0)])
    assert make_loop(steps=4, hooks=[Again(4, 0.0)]).clock.planned_steps() == 1
    with pytest.raises(ConfigError, match="2 techniques"):
        make_loop(hooks=[Again(2, 0.0), Again(2, 0.0)])


def test_each_beginning_is_told_and_the_share_of_the_whole_run_only_grows(make_loop: MakeLoop) -> None:
    told: list[Event] = []
    make_loop(steps=30, hooks=[Again(3, 0.25)]).run(told.append)
    messages = [event.message for event in told if event.message]
    assert messages == [f"Training {turn} of 3 begins at step 3 again." for turn in (2, 3)]
    shares = [event.fraction or 0.0 for event in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
