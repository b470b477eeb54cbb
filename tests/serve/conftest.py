"""A tiny model, and the same one in an artifact file."""

from pathlib import Path

import pytest

from fairway.serve.model import Model
from serve.tiny import random_model, write_artifact


@pytest.fixture(scope="session")
def model() -> Model:
    return random_model()


@pytest.fixture(scope="session")
def artifact(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(model, tmp_path_factory.mktemp("artifact") / "model.fwy")
