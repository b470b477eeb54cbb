"""Scores for `fairway evaluate`: on files, or on the validation text of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairway.cli.console.target import artifact_path, open_folder
from fairway.core.config import override
from fairway.core.device import use_threads
from fairway.core.errors import ConfigError
from fairway.core.log import Listener
from fairway.data.files import find_files, opened
from fairway.evaluate.bpb import EvaluateConfig, evaluate
from fairway.serve.load import load


def score_files(target: str, paths: Sequence[Path], settings: Sequence[str], listener: Listener) -> dict[str, Any]:
    """The score of an artifact on every file named, or found in the folders named."""
    config = EvaluateConfig.read(override({}, settings), origin="settings")
    use_threads()
    model = load(artifact_path(target))
    return evaluate(model, _whole_files(paths), config, listener=listener).plain()


def score_run(folder: str, settings: Sequence[str], listener: Listener) -> dict[str, Any]:
    """The score of a run's artifact on its own validation text, by a fresh process."""
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder} is no run folder; to score a file, say on what: --text FILE.")
    if settings:
        raise ConfigError("A run is scored by its own recipe; settings go with --text.")
    return open_folder(folder).evaluate(listener)


def _whole_files(paths: Sequence[Path]) -> list[bytes]:
    documents = []
    for path in find_files([str(path) for path in paths]):
        with opened(path) as file:
            documents.append(file.read())
    return documents
