"""Several ranks: the loss curve of one, one decision for all, and a run that goes on with another number of them."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fairway.core.errors import CheckpointError, ConfigError
from fairway.core.log import Event, silent
from fairway.core.storage import read_journal
from fairway.data.manifest import Manifest
from fairway.train import distributed
from fairway.train.distributed import ALONE, Team
from fairway.train.loop import Loop
from fairway.train.parts import Hook
from train.ranks import STEPS, WAYS, loop_of

CURVES = ("ddp", "all_update", "fsdp", "adamw", "staged", "poisoned")
MakeLoop = Callable[..., Loop]


def run_ranks(world: int, data: Path, folder: Path, ways: list[str]) -> None:
    """Starts `ranks.py` on some ranks and waits for them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(data), str(folder), *ways]
    ranks = []
    for rank in range(world):
        variables = {**common, "RANK": rank, "LOCAL_RANK": rank}
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), said


def losses(folder: Path) -> list[float]:
    return [record["train/loss"] for record in read_journal(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def trained(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of every way, each trained once on two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(2, manifest.folder, folder, list(WAYS))
    return folder


@pytest.mark.parametrize("way", [way for way in CURVES if way != "poisoned"])
def test_two_ranks_give_the_loss_curve_of_one(trained: Path, manifest: Manifest, tmp_path: Path, way: str) -> None:
    loop_of(way, manifest.folder, tmp_path).run(silent)
    alone = losses(tmp_path / way)
    assert len(alone) == STEPS
    assert losses(trained / way) == pytest.approx(alone, rel=1e-5)
    assert alone[-1] < 0.9 * alone[0]


def test_a_nan_on_one_rank_skips_the_step_on_every_rank(trained: Path, manifest: Manifest, tmp_path: Path) -> None:
    records = read_journal(trained / "poisoned" / "metrics.jsonl")
    assert [record["skipped"] for record in records] == [0, 0, 0, 1, 0, 0, 0, 0]
    loop_of("poisoned", manifest.folder, tmp_path).run(silent)
    assert losses(trained / "poisoned")[4:] == pytest.approx(losses(tmp_path / "poisoned")[4:], rel=1e-5)


@pytest.mark.parametrize("way", ["stopped", "stopped_fsdp"])
def test_a_run_saved_on_two_ranks_goes_on_with_one(trained: Path, manifest: Manifest, tmp_path: Path, way: str) -> None:
    assert len(losses(trained / way)) == 5, "a signal to one rank must stop all after the same step"
    told: list[Event] = []
    loop_of(way, manifest.folder, trained).run(told.append)
    loop_of("ddp", manifest.folder, tmp_path).run(silent)
    assert losses(trained / way) == pytest.approx(losses(tmp_path / "ddp"), rel=1e-5)
    assert any("ranks was 2, is 1" in event.message for event in told)


def test_the_first_rank_alone_writes(trained: Path) -> None:
    for way in WAYS:
        steps = [record["step"] for record in read_journal(trained / way / "metrics.jsonl")]
        assert steps == sorted(set(steps))
        assert {path.name for path in (trained / way).iterdir()} == {"metrics.jsonl", "checkpoints"}


def test_the_optimizers_state_is_whole_in_a_checkpoint(trained: Path, manifest: Manifest, tmp_path: Path) -> None:
    alone = loop_of("adamw", manifest.folder, tmp_path)
    alone.run(silent)
    again = loop_of("adamw", manifest.folder, trained)
    again.run(silent)
    state = again.optimizer.state()
    assert state.keys() == alone.optimizer.state().keys()
    for name, tensor in alone.optimizer.state().items():
        assert not tensor.is_floating_point() or tensor.norm().item() == pytest.approx(
            state[name].norm().item(), rel=1e-3
        )


def test_a_batch_that_ranks_cannot_share_is_refused_before_training(
    make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_three(*assignments: str, hooks: list[Hook] | None = None) -> None:
        made = make_loop(*assignments)
        Loop(
            made.model,
            made.batches,
            made.config,
            made.clock.budget,
            1,
            made.folder,
            {},
            made.meter,
            hooks or [],
            Team(0, 3),
        )

    monkeypatch.setattr(Team, "sum", lambda self, values: list(values))  # noqa: ARG005
    with pytest.raises(ConfigError, match="batch of 4 rows"):
        on_three("batch=4")
    with pytest.raises(ConfigError, match="batch of 2 rows"):
        on_three("batch=6", "stages.batch=[[0, 0.3333], [0.5, 1]]")
    with pytest.raises(ConfigError, match="Hook does not work on 3 ranks with fsdp"):
        on_three("batch=6", "parallel=fsdp", hooks=[Hook()])


def test_ranks_that_see_different_checkpoints_are_told(make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop()
    monkeypatch.setattr(Team, "by_first", lambda self, values: [value + 1 for value in values])  # noqa: ARG005
    with pytest.raises(CheckpointError, match="all of them share"):
        loop.run(silent)


def test_a_strange_world_size_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 'two'"), distributed.joined():
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.joined() as team:
        assert team == ALONE


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stopped", "stopped_fsdp"])
def test_a_run_saved_on_four_ranks_goes_on_with_two(manifest: Manifest, tmp_path: Path, way: str) -> None:
    run_ranks(4, manifest.folder, tmp_path, [way, "ddp"])
    assert len(losses(tmp_path / way)) == 5
    run_ranks(2, manifest.folder, tmp_path, [way])
    loop_of("ddp", manifest.folder, tmp_path / "alone").run(silent)
    assert losses(tmp_path / way) == pytest.approx(losses(tmp_path / "alone" / "ddp"), rel=1e-5)
    assert losses(tmp_path / "ddp") == pytest.approx(losses(tmp_path / "alone" / "ddp"), rel=1e-5)
