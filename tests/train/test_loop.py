"""The loop: it learns, stops in time, resumes bit for bit, survives bad gradients and bad moments."""

import os
import signal
from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import Tensor

from fairway.core.errors import CheckpointError, Interrupted, TrainingError
from fairway.core.log import Event, silent
from fairway.core.storage import read_journal
from fairway.train.loop import Loop
from fairway.train.parts import Hook, Trainee

MakeLoop = Callable[..., Loop]


def losses(loop: Loop) -> list[float]:
    return [record["train/loss"] for record in read_journal(loop.folder / "metrics.jsonl")]


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_loss_of_a_simple_language_falls_by_more_than_half(make_loop: MakeLoop) -> None:
    loop = make_loop(steps=60)
    loop.run(silent)
    assert losses(loop)[-1] < 0.5 * losses(loop)[0]
    assert loop.step == 60


class Stop(Hook):
    """Asks the process to stop after some steps, as Ctrl-C would."""

    def __init__(self, after: int, number: int = signal.SIGINT) -> None:
        self.after, self.number = after, number

    def stepped(self, loop: Trainee) -> dict[str, float]:
        if loop.step + 1 == self.after:
            os.kill(os.getpid(), self.number)
        return {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_run_goes_on_bit_for_bit(make_loop: MakeLoop, optimizer: str, number: int) -> None:
    choice = f"optimizer.kind={optimizer}"
    whole = make_loop(choice, folder="whole")
    wanted = whole.run(silent)
    with pytest.raises(Interrupted, match="again to go on"):
        make_loop(choice, folder="cut", hooks=[Stop(5, number)]).run(silent)
    rest = make_loop(choice, folder="cut", hooks=[Hook()])
    assert equal(rest.run(silent), wanted)
    assert equal(rest.optimizer.state(), whole.optimizer.state())
    assert losses(rest) == losses(whole)


def test_a_finished_run_is_not_trained_again(make_loop: MakeLoop) -> None:
    wanted = make_loop().run(silent)
    again = make_loop()
    assert equal(again.run(silent), wanted)
    assert len(losses(again)) == 12


def test_accumulation_over_micro_batches_is_one_batch(make_loop: MakeLoop) -> None:
    one = make_loop("optimizer.kind=sgd", folder="one")
    many = make_loop("optimizer.kind=sgd", "micro_batch=1", folder="many")
    for left, right in zip(one.run(silent).values(), many.run(silent).values(), strict=True):
        assert torch.allclose(left, right, atol=1e-5)


class Poison(Hook):
    """Plants a NaN in one gradient at some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def loss(self, loop: Trainee, batch: object, output: object) -> dict[str, Tensor]:  # noqa: ARG002
        if loop.step not in self.steps:
            return {}
        weight = next(loop.model.parameters())
        return {"poison": weight.flatten()[0] * float("nan")}


def test_one_bad_gradient_skips_one_step_and_reaches_no_parameter(make_loop: MakeLoop) -> None:
    loop = make_loop(hooks=[Poison(4)])
    weights = loop.run(silent)
    records = read_journal(loop.folder / "metrics.jsonl")
    assert [record["skipped"] for record in records] == [0] * 4 + [1] + [0] * 7
    assert all(weight.isfinite().all() for weight in weights.values())


def test_bad_gradients_in_a_row_stop_the_run(make_loop: MakeLoop) -> None:
    loop = make_loop("patience=3", hooks=[Poison(*range(5, 12))])
    with pytest.raises(TrainingError, match="3 steps in a row"):
        loop.run(silent)
    assert all(parameter.isfinite().all() for parameter in loop.model.parameters())


def test_time_ends_a_run_without_overrunning_the_budget(make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = count(step=0.05)
    monkeypatch.setattr("fairway.train.clock.time.monotonic", lambda: next(readings))
    loop = make_loop(steps=None, seconds=10.0)
    loop.run(silent)
    last = read_journal(loop.folder / "metrics.jsonl")[-1]
    assert loop.step > 3
    assert 9.0 < last["elapsed"] <= 10.0
    assert last["lr"] < 0.3


def test_a_checkpoint_of_another_recipe_is_refused_with_the_difference(make_loop: MakeLoop) -> None:
    make_loop(facts={"recipe": "abc"}).run(silent)
    with pytest.raises(CheckpointError, match="recipe was 'abc', is 'def'"):
        make_loop(facts={"recipe": "def"}).run(silent)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(make_loop: MakeLoop) -> None:
    wanted = make_loop("checkpoint_every=0.000001").run(silent)
    loop = make_loop("checkpoint_every=0.000001")
    newest = sorted((loop.folder / "checkpoints").iterdir())[-1]
    path = newest / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    told: list[Event] = []
    assert equal(loop.run(told.append), wanted)
    assert any("damaged" in event.message for event in told)


def test_every_step_is_logged_once_with_what_people_watch(make_loop: MakeLoop) -> None:
    loop = make_loop()
    loop.run(silent)
    records = read_journal(loop.folder / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 13))
    assert {"train/loss", "train/bpb", "tokens/s", "lr", "grad_norm", "elapsed"} <= records[0].keys()
