"""A tiny model, and the same one in an artifact file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fairway.evaluate import proof as proof_module
from fairway.serve.model import Model
from serve.tiny import random_model, write_artifact


@pytest.fixture(scope="session")
def model() -> Model:
    return random_model()


@pytest.fixture(scope="session")
def artifact(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(model, tmp_path_factory.mktemp("artifact") / "model.fwy")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves of a proof without the seconds that starting two processes takes."""

    def run(verb: str, *arguments: object) -> dict[str, object]:
        half: Callable[..., dict[str, object]] = (
            proof_module._compress if verb == "compress" else proof_module._decompress
        )
        return half(*map(str, arguments))

    monkeypatch.setattr(proof_module, "_in_a_fresh_process", run)
