"""Every optimizer, schedule, precision and recomputation inside the loop: it learns, and resumes bit for bit."""

import os
import signal
from collections.abc import Callable

import pytest
import torch

from fairway.core.config import Slot
from fairway.core.errors import Interrupted
from fairway.core.log import silent
from fairway.core.storage import read_journal
from fairway.train.loop import Loop
from fairway.train.parts import Hook, Trainee

MakeLoop = Callable[..., Loop]
SLOTS = {
    "optimizer": "fairway.optim.optimizer",
    "schedule": "fairway.optim.schedule",
    "precision": "fairway.train.precision",
    "recompute": "fairway.train.recompute",
}
CHOICES = [f"{slot}.kind={kind}" for slot, package in SLOTS.items() for kind in Slot(package, "").kinds()]


class Stop(Hook):
    """Asks the process to stop after four steps."""

    def stepped(self, loop: Trainee) -> dict[str, float]:
        if loop.step + 1 == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}


@pytest.mark.parametrize("choice", [*CHOICES, "precision={kind: bf16_pure, rounding: kahan}"])
def test_every_choice_resumes_bit_for_bit(make_loop: MakeLoop, choice: str) -> None:
    whole = make_loop(choice, steps=8, folder="whole")
    wanted = whole.run(silent)
    with pytest.raises(Interrupted):
        make_loop(choice, steps=8, folder="cut", hooks=[Stop()]).run(silent)
    found = make_loop(choice, steps=8, folder="cut", hooks=[Hook()]).run(silent)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_learns(make_loop: MakeLoop, choice: str) -> None:
    larger_rate = ["optimizer.lr=0.005"] if choice.endswith("lion") else []
    loop = make_loop(choice, *larger_rate, steps=40)
    loop.run(silent)
    losses = [record["train/loss"] for record in read_journal(loop.folder / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
