"""The pieces of the loop: clock, average, meter, validation curve, checkpoints, gradient norm."""

import math
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from fairway.core.budget import Budget
from fairway.core.config import override
from fairway.core.errors import CheckpointError, StorageError
from fairway.core.log import silent
from fairway.core.storage import faults
from fairway.data.manifest import Manifest
from fairway.model.lm import ModelConfig
from fairway.train import checkpoint as checkpoints
from fairway.train.average import Average, AverageConfig
from fairway.train.clock import Clock
from fairway.train.meter import Meter
from fairway.train.parts import global_norm
from fairway.train.validation import Validation, ValidationConfig, looks_ahead, mean_nats


def test_progress_by_steps_is_steps_done_over_steps_planned() -> None:
    clock = Clock(Budget(steps=4))
    seen = []
    while not clock.done:
        seen.append(clock.progress)
        clock.tick()
    assert seen == [0.0, 0.25, 0.5, 0.75]
    assert clock.planned_steps() == 4


def test_progress_by_time_goes_on_from_the_seconds_before_a_resume() -> None:
    clock = Clock(Budget(seconds=100), step=10, elapsed=50)
    assert 0.5 <= clock.progress < 0.6
    assert 15 < clock.planned_steps() <= 20
    assert Clock(Budget(seconds=100), elapsed=101).done


def test_the_average_is_the_recurrence_and_starts_when_told() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    average = Average(model, AverageConfig(horizon=0.1, start=0.5))
    weights, expected = [1.0, 2.0, 4.0, 8.0], math.nan
    for index, weight in enumerate(weights):
        nn.init.constant_(model.weight, weight)
        average.update(progress=index / 4, planned_steps=40)
        if index == 2:
            expected = weight
        elif index > 2:
            expected = expected + (weight - expected) / 4
    assert average.weights()["weight"].item() == pytest.approx(expected, rel=1e-12)


def test_without_a_horizon_the_weights_themselves_are_kept() -> None:
    model = nn.Linear(2, 2)
    average = Average(model, AverageConfig(horizon=0))
    average.update(1.0, 10)
    assert torch.equal(average.weights()["weight"], model.weight)


def test_bits_per_byte_and_utilisation_follow_from_their_definitions() -> None:
    meter = Meter(bytes_per_token=2.0, flops_per_token=100.0, peak=1e6)
    figures = meter.figures(math.log(2) * 3, tokens=50, seconds=0.1)
    assert figures["train/bpb"] == pytest.approx(1.5)
    assert figures["tokens/s"] == pytest.approx(500)
    assert figures["mfu"] == pytest.approx(3 * 100 * 500 / 1e6)


def test_a_uniform_model_costs_the_logarithm_of_the_vocabulary(manifest: Manifest) -> None:
    model = ModelConfig.read(
        override({}, ["width=16", "context=16", "depth=1", "mixer.heads=2", "embedding.deviation=1e-9"])
    )
    network = model.build(manifest.tokenizer.vocabulary, seed=0)
    watching = Validation(manifest, Meter(1.0, 1.0), 16, ValidationConfig(windows=3))
    assert watching.windows_BT.shape == (3, 17)
    assert mean_nats(network, watching.windows_BT) == pytest.approx(math.log(manifest.tokenizer.vocabulary), rel=1e-5)
    assert network.training


@pytest.mark.parametrize(
    ("overrides", "differs"),
    [
        (["depth.kind=mixture_of_depths", "depth.layers=2"], True),
        (["ffn.kind=moe", "ffn.routing=expert", "ffn.allow_future=true"], False),
        (["ffn.kind=moe", "ffn.capacity=0.5", "ffn.drop=score"], True),
    ],
)
def test_what_looks_ahead_in_training_is_measured_both_ways(
    manifest: Manifest, overrides: list[str], differs: bool
) -> None:
    model = ModelConfig.read(override({}, ["width=16", "context=16", "depth=1", "mixer.heads=2", *overrides]))
    network = model.build(manifest.tokenizer.vocabulary, seed=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    watching = Validation(manifest, Meter(1.0, 1.0), 16, ValidationConfig(windows=3, times=1))
    assert looks_ahead(network)
    loop = types.SimpleNamespace(progress=1.0, model=network)
    figures = watching.stepped(loop)
    assert figures["val/bpb"] > 0
    assert (figures["val/bpb_ahead"] != figures["val/bpb"]) == differs
    assert network.training


def test_a_model_that_sees_the_past_alone_is_measured_once(manifest: Manifest) -> None:
    model = ModelConfig.read(override({}, ["width=16", "context=16", "depth=1", "mixer.heads=2", "ffn.kind=moe"]))
    network = model.build(manifest.tokenizer.vocabulary, seed=0)
    watching = Validation(manifest, Meter(1.0, 1.0), 16, ValidationConfig(windows=3, times=1))
    assert "val/bpb_ahead" not in watching.stepped(types.SimpleNamespace(progress=1.0, model=network))


def test_a_checkpoint_comes_back_exactly_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.save_checkpoint(
            tmp_path, step, {"model": {"w": torch.full((2,), step)}, "empty": {}}, {"fact": "x"}
        )
    found = checkpoints.latest_checkpoint(tmp_path, silent)
    assert found is not None
    assert found.step == 3
    assert found.facts == {"fact": "x"}
    assert torch.equal(found.groups["model"]["w"], torch.full((2,), 3))
    assert found.groups["empty"] == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


class Crash(BaseException):
    """Ends a save at a fault point, as a dying process would."""


def test_a_crash_at_any_point_of_a_save_leaves_a_valid_checkpoint(tmp_path: Path) -> None:
    groups = {"model": {"w": torch.ones(3)}, "optimizer": {"m": torch.zeros(3)}}
    points: list[str] = []
    with faults(points.append):
        checkpoints.save_checkpoint(tmp_path / "dry", 1, groups, {})
    assert len(points) > 10
    for at in range(len(points)):
        folder = tmp_path / str(at)
        checkpoints.save_checkpoint(folder, 1, groups, {})
        count = iter(range(len(points) + 1))

        def crash(name: str, at: int = at, count=count) -> None:  # noqa: ARG001
            if next(count) == at:
                raise Crash

        with faults(crash), pytest.raises(Crash):
            checkpoints.save_checkpoint(folder, 2, groups, {})
        found = checkpoints.latest_checkpoint(folder, silent)
        assert found is not None
        assert found.step in (1, 2)
        checkpoints.save_checkpoint(folder, 3, groups, {})
        assert checkpoints.read_checkpoint(folder / "step-00000003").step == 3


def test_checkpoints_that_are_all_damaged_are_an_error(tmp_path: Path) -> None:
    path = checkpoints.save_checkpoint(tmp_path, 1, {"model": {"w": torch.ones(3)}}, {})
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="None of the 1"):
        checkpoints.latest_checkpoint(tmp_path, silent)


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: 10)  # noqa: ARG005
    with pytest.raises(StorageError, match="10 bytes free"):
        checkpoints.save_checkpoint(tmp_path / "new", 1, {"model": {"w": torch.ones(3)}}, {})
    assert not (tmp_path / "new").exists()


def test_the_global_norm_is_that_of_all_gradients_together() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(5))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert global_norm(parameters).item() == pytest.approx(5.0)
    parameters[1].grad = torch.tensor([math.nan])
    assert not global_norm(parameters).isfinite()
