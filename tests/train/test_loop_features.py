"""What the loop can do beside stepping: stages, guard, averages, warm-up, profile, rate finder, health."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fairway.core.budget import Budget
from fairway.core.errors import TrainingError
from fairway.core.log import silent
from fairway.core.storage import read_journal
from fairway.train.average import Average, AverageConfig
from fairway.train.finder import find_rate
from fairway.train.health import examine
from fairway.train.loop import Loop
from fairway.train.parts import Hook, Trainee
from fairway.train.profile import Stopwatch

MakeLoop = Callable[..., Loop]


def records(loop: Loop) -> list[dict]:
    return read_journal(loop.folder / "metrics.jsonl")


def test_stages_change_the_tokens_of_a_step_and_go_on_after_a_resume(make_loop: MakeLoop) -> None:
    stages = ["stages.batch=[[0, 0.5], [0.5, 1]]", "stages.context=[[0, 0.5], [0.25, 1]]"]
    whole = make_loop(*stages, folder="whole")
    wanted = whole.run(silent)
    assert [record["tokens"] for record in records(whole)] == [2 * 8] * 3 + [2 * 16] * 3 + [4 * 16] * 6
    make_loop(*stages, "checkpoint_every=0.000001", folder="cut").run(silent)
    last = sorted((whole.folder.parent / "cut" / "checkpoints").iterdir())[-1]
    for path in last.iterdir():
        path.unlink()
    again = make_loop(*stages, "checkpoint_every=0.000001", folder="cut")
    weights = again.run(silent)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert again.tokens == whole.tokens == 3 * 16 + 3 * 32 + 6 * 64


class Seen(Hook):
    """Collects the tokens of every step."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def loss(self, loop: Trainee, batch: object, output: object) -> dict[str, Tensor]:  # noqa: ARG002
        self.rows.append(batch.tokens_BT)  # pyrefly: ignore
        return {}


def test_a_growing_batch_neither_skips_nor_repeats_text(make_loop: MakeLoop) -> None:
    seen, steady = Seen(), Seen()
    make_loop("stages.batch=[[0, 0.5], [0.5, 1]]", hooks=[seen]).run(silent)
    make_loop("batch=1", steps=36, folder="steady", hooks=[steady]).run(silent)
    assert torch.equal(torch.cat(seen.rows), torch.cat(steady.rows))


class Spike(Hook):
    """Makes the gradients of one step enormous."""

    def loss(self, loop: Trainee, batch: object, output: object) -> dict[str, Tensor]:  # noqa: ARG002
        if loop.step != 30:
            return {}
        return {"spike": 1e6 * torch.stack([parameter.sum() for parameter in loop.model.parameters()]).sum()}


def test_the_guard_skips_a_spike_and_weights_stay_as_they_were(make_loop: MakeLoop) -> None:
    loop = make_loop("guard.sigmas=6", "guard.window=16", steps=32, hooks=[Spike()])
    loop.run(silent)
    assert [record["step"] for record in records(loop) if record["skipped"]] == [31]
    assert len(loop.guard.state()["seen"]) == 16


def averaged(config: AverageConfig, weights: list[float]) -> float:
    model = nn.Linear(1, 1, bias=False).double()
    average = Average(model, config)
    for index, weight in enumerate(weights):
        nn.init.constant_(model.weight, weight)
        average.update(index / len(weights), len(weights))
    return average.weights()["weight"].item()


def test_the_tail_average_is_the_plain_mean_of_the_tail() -> None:
    weights = [float(value * value) for value in range(10)]
    tail = averaged(AverageConfig(kind="tail", start=0.5), weights)
    assert tail == pytest.approx(sum(weights[5:]) / 5, rel=1e-12)


def test_stochastic_weight_averaging_takes_one_snapshot_at_each_interval() -> None:
    weights = [float(value * value) for value in range(10)]
    found = averaged(AverageConfig(kind="swa", start=0.2, every=0.3), weights)
    assert found == pytest.approx((weights[2] + weights[5] + weights[8]) / 3, rel=1e-12)


@pytest.mark.parametrize("kind", ["tail", "swa"])
def test_a_plain_mean_goes_on_after_a_resume(make_loop: MakeLoop, kind: str) -> None:
    choice = [f"average.kind={kind}", "average.every=0.1", "average.start=0.3"]
    wanted = make_loop(*choice, folder="whole").run(silent)
    make_loop(*choice, "checkpoint_every=0.000001", folder="cut").run(silent)
    newest = sorted((make_loop(folder="cut").folder / "checkpoints").iterdir())[-1]
    (newest / "manifest.json").unlink()
    found = make_loop(*choice, "checkpoint_every=0.000001", folder="cut").run(silent)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_warm_up_steps_leave_no_trace(make_loop: MakeLoop, precision: str) -> None:
    plain = make_loop(f"precision.kind={precision}", folder="plain")
    warmed = make_loop(f"precision.kind={precision}", "warmup_steps=2", folder="warmed")
    wanted, found = plain.run(silent), warmed.run(silent)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert [record["train/loss"] for record in records(warmed)] == [record["train/loss"] for record in records(plain)]


def test_warm_up_steps_do_not_count_against_the_time(make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop("warmup_steps=1")
    now = [0.0]
    monkeypatch.setattr("fairway.train.clock.time.monotonic", lambda: now[0])
    loop.clock = type(loop.clock)(Budget(steps=12))
    accumulate = loop.accumulate

    def slow(*arguments: object) -> object:
        now[0] += 100.0 if loop.tokens == 0 and now[0] < 100 else 1.0
        return accumulate(*arguments)  # pyrefly: ignore

    monkeypatch.setattr(loop, "accumulate", slow)
    loop.run(silent)
    assert records(loop)[-1]["elapsed"] == pytest.approx(12.0)


def test_a_profile_accounts_for_the_whole_step(make_loop: MakeLoop) -> None:
    loop = make_loop()
    loop.stopwatch = Stopwatch(torch.device("cpu"))
    loop.run(silent)
    found = loop.stopwatch.result()
    assert found.steps == 11
    assert {"data", "forward", "backward", "optimizer", "average"} <= found.parts.keys()
    assert sum(found.parts.values()) == pytest.approx(found.milliseconds, rel=0.2)
    assert min(found.parts["forward"], found.parts["backward"]) > 0
    assert any("mm" in name for name in found.operators)


def test_the_rate_finder_suggests_a_rate_below_the_explosion(make_loop: MakeLoop) -> None:
    found = find_rate(make_loop(), silent, steps=60)
    best = found.factors[found.losses.index(min(found.losses))]
    assert 1e-3 < found.suggestion < best
    assert list(found.factors) == sorted(found.factors)
    with pytest.raises(TrainingError, match="lower start"):
        find_rate(make_loop(), silent, low=1e8, high=1e9, steps=10)


def test_health_names_dead_units_and_parameters_without_gradient(make_loop: MakeLoop) -> None:
    loop = make_loop(steps=4)
    loop.run(silent)
    batch, _ = loop.batch_at(0.0)
    well = examine(loop, batch)
    before = next(one for one in well.units if one.name == "depth.blocks.0.ffn.output")
    assert before.count == 64
    assert before.dead < before.zeros < 0.6
    assert "No gradient" not in " ".join(well.warnings())
    norm = sum(flow.gradient**2 * loop.model.get_parameter(flow.name).numel() for flow in well.flows) ** 0.5
    assert norm == pytest.approx(well.gradient_norm, rel=1e-5)
    with torch.no_grad():
        loop.model.get_parameter("depth.blocks.0.ffn.input.weight")[:40].zero_()
        loop.model.get_parameter("depth.blocks.0.mixer.output.weight").zero_()
    ill = examine(loop, batch)
    after = next(one for one in ill.units if one.name == "depth.blocks.0.ffn.output")
    assert 40 / 64 <= after.dead <= after.zeros < 1
    told = " ".join(ill.warnings())
    assert "depth.blocks.0.ffn.output" in told
    assert "No gradient reaches depth.blocks.0.mixer" in told
    assert all(parameter.grad is None for parameter in loop.model.parameters())
