"""A NaN or an infinity, wherever it comes up, skips its own step and reaches no parameter and no state."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fairway.core.errors import TrainingError
from fairway.core.log import silent
from fairway.core.storage import read_journal
from fairway.data.batches import Batch
from fairway.model.lm import Output
from fairway.run import Run, load_recipe
from fairway.train.loop import Loop
from fairway.train.parts import Hook, Trainee
from survival.trainers import recipe

STEPS, BAD = 8, 3


class Injected(Hook):
    """Puts a number into the loss, or into one element of one gradient, at some steps."""

    def __init__(self, place: str, value: float, steps: range) -> None:
        self.place, self.value, self.steps = place, value, steps
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def loss(self, loop: Trainee, batch: Batch, output: Output) -> dict[str, Tensor]:  # noqa: ARG002
        weight = next(weight for name, weight in loop.model.named_parameters() if name.startswith("depth"))
        now = loop.step in self.steps
        for handle in self.handles:
            handle.remove()
        self.handles = [weight.register_hook(self._spoilt)] if now and self.place == "gradient" else []
        if now and self.place == "loss":
            return {"injected": weight.flatten()[0] * self.value}
        return {"none": weight.flatten()[0] * 0.0}

    def _spoilt(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[0] = self.value
        return gradient


def trained(home: Path, name: str, hook: Hook, *assignments: str) -> SimpleNamespace:
    """Runs the whole loop of the small recipe with a hook."""
    path = home / "recipe.yaml"
    if not path.exists():
        recipe(home, steps=STEPS)
    run = Run.create(load_recipe(path, ["train.checkpoint_every=60", *assignments]), home / name)
    loop = run.training(run.prepare(silent), hooks=(hook,))
    error = None
    try:
        loop.run(silent)
    except TrainingError as stopped:
        error = stopped
    log = read_journal(run.folder / "metrics.jsonl")
    return SimpleNamespace(loop=loop, log=log, error=error)


def finite(loop: Loop) -> bool:
    tensors = [*loop.model.parameters(), *loop.optimizer.state().values(), *loop.average.state().values()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point())


@pytest.mark.parametrize("place", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_number_skips_exactly_one_step(place: str, value: float, tmp_path: Path) -> None:
    done = trained(tmp_path, "bad", Injected(place, value, range(BAD, BAD + 1)))
    assert [row["skipped"] for row in done.log] == [0] * BAD + [1] + [0] * (STEPS - BAD - 1)
    assert not math.isfinite(done.log[BAD]["grad_norm"])
    assert finite(done.loop)
    assert all(math.isfinite(row["train/loss"]) for row in done.log)


def test_a_spoilt_step_leaves_the_weights_as_if_it_had_not_been(tmp_path: Path) -> None:
    bad = trained(tmp_path, "bad", Injected("gradient", math.nan, range(STEPS - 1, STEPS)))
    good = trained(tmp_path, "good", Injected("gradient", 0.0, range(0)), f"budget.steps={STEPS}")
    assert bad.log[-1]["skipped"] == 1
    assert [row["train/loss"] for row in bad.log] == [row["train/loss"] for row in good.log]
    last = [weight.detach().clone() for weight in good.loop.model.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(bad.loop.model.parameters(), last, strict=True))


def test_many_in_a_row_stop_the_run_with_finite_weights(tmp_path: Path) -> None:
    done = trained(tmp_path, "bad", Injected("gradient", math.nan, range(2, STEPS)), "train.patience=3")
    assert done.error is not None
    assert "3 steps in a row" in str(done.error)
    assert finite(done.loop)


def test_without_the_guard_one_bad_element_would_spoil_every_weight() -> None:
    """What is guarded against: clipping by a norm that is NaN makes every gradient NaN."""
    weights = [torch.nn.Parameter(torch.ones(4)) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.ones(4)
    gradient = weights[0].grad
    assert gradient is not None
    gradient[0] = math.nan
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    torch.optim.AdamW(weights).step()
    assert all(bool(weight.isnan().all()) for weight in weights)
