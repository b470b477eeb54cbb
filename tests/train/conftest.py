"""A tiny prepared text and a loop over it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairway.core.budget import Budget
from fairway.core.config import override
from fairway.core.seed import numpy_generator
from fairway.data.batches import Batches
from fairway.data.manifest import DataConfig, Manifest, prepare
from fairway.model.lm import ModelConfig
from fairway.train.loop import Loop, TrainConfig
from fairway.train.meter import Meter
from fairway.train.parts import Hook

MODEL = ["width=16", "context=16", "depth=1", "mixer.heads=2"]


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Forty documents of a language with two words, as bytes."""
    folder = tmp_path_factory.mktemp("text")
    random = numpy_generator(0, "documents")
    for index in range(40):
        words = random.choice(["so ", "do "], 60)
        (folder / f"{index}.txt").write_text(f"{index} " + "".join(words))
    config = {"source": {"kind": "text", "path": str(folder)}, "tokenizer": "byte", "validation_fraction": 0.2}
    return prepare(DataConfig.read(config), folder / "data")


@pytest.fixture
def make_loop(manifest: Manifest, tmp_path: Path) -> Callable[..., Loop]:
    """Makes a loop in the test's folder: `make_loop("batch=4", steps=12, hooks=[...])`."""

    def make(
        *assignments: str,
        steps: int | None = 12,
        seconds: float = 60.0,
        folder: str = "run",
        hooks: list[Hook] | None = None,
        facts: dict[str, Any] | None = None,
    ) -> Loop:
        model = ModelConfig.read(override({}, MODEL)).build(manifest.tokenizer.vocabulary, seed=1)
        config = TrainConfig.read(override({}, ["batch=4", "precision.kind=fp32", *assignments]))
        budget = Budget(steps=steps, seconds=seconds)
        meter = Meter(1.0, model.flops(16))
        return Loop(model, Batches(manifest, 1), config, budget, 1, tmp_path / folder, facts or {}, meter, hooks or [])

    return make
