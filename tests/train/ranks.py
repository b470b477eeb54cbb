"""Trains the same tiny model in several ways on the ranks that start this file: `ranks.py DATA FOLDER WAY...`."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor

from fairway.core.budget import Budget
from fairway.core.config import override
from fairway.core.errors import Interrupted
from fairway.core.log import silent
from fairway.data.batches import Batches
from fairway.data.manifest import Manifest
from fairway.model.lm import ModelConfig
from fairway.train.distributed import ALONE, Team, joined
from fairway.train.loop import Loop, TrainConfig
from fairway.train.meter import Meter
from fairway.train.parts import Hook, Trainee

STEPS = 8
BASE = ["batch=8", "precision.kind=fp32", "micro_batch=2"]
EXACT = ["optimizer.arithmetic=float32"]
WAYS = {
    "ddp": EXACT,
    "all_update": [*EXACT, "share_updates=false"],
    "fsdp": [*EXACT, "parallel=fsdp"],
    "adamw": ["optimizer.kind=adamw"],
    "staged": [*EXACT, "stages.batch=[[0, 0.5], [0.5, 1]]", "stages.context=[[0, 0.5], [0.3, 1]]", "warmup_steps=1"],
    "poisoned": EXACT,
    "stopped": EXACT,
    "stopped_fsdp": [*EXACT, "parallel=fsdp"],
}


class Poison(Hook):
    """Plants a NaN in the loss of one rank at step 3."""

    ranks = "slices"

    def __init__(self, team: Team) -> None:
        self.here = team.rank == team.world - 1

    def loss(self, loop: Trainee, batch: object, output: object) -> dict[str, Tensor]:  # noqa: ARG002
        weight = next(loop.model.parameters()).flatten()[0]
        return {"poison": weight * float("nan")} if self.here and loop.step == 3 else {}


class Stop(Hook):
    """Asks the last rank alone to stop after step 5."""

    ranks = "slices"

    def __init__(self, team: Team) -> None:
        self.here = team.rank == team.world - 1

    def stepped(self, loop: Trainee) -> dict[str, float]:
        if self.here and loop.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}


def loop_of(way: str, data: Path, folder: Path, team: Team = ALONE) -> Loop:
    """The loop of one way, over a team."""
    manifest = Manifest.read(data)
    config = ModelConfig.read(override({}, ["width=16", "context=16", "depth=2", "mixer.heads=2"]))
    train = TrainConfig.read(override({}, [*BASE, *WAYS[way]]))
    model = config.build(manifest.tokenizer.vocabulary, seed=1)
    hooks: list[Hook] = [Poison(team)] if way == "poisoned" else [Stop(team)] if way.startswith("stopped") else []
    meter = Meter(1.0, model.flops(16))
    return Loop(model, Batches(manifest, 1), train, Budget(steps=STEPS), 1, folder / way, {}, meter, hooks, team)


def main(data: Path, folder: Path, ways: list[str]) -> None:
    with joined() as team:
        for way in ways:
            try:
                weights = loop_of(way, data, folder, team).run(silent)
            except Interrupted:
                continue
            assert all(torch.isfinite(weight).all() for weight in weights.values())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
