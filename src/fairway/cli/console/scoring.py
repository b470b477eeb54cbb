"""Scores for `fairway evaluate`: on files, or on the validation text of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairway.cli.console.target import artifact_path, open_folder
from fairway.core.budget import parse_bytes
from fairway.core.config import override
from fairway.core.device import use_threads
from fairway.core.errors import ConfigError
from fairway.core.log import Listener, silent
from fairway.data.files import find_files, opened
from fairway.evaluate import proof
from fairway.evaluate.adapt import AdaptConfig, evaluate_adapted
from fairway.evaluate.bpb import EvaluateConfig, evaluate, sample
from fairway.evaluate.gates import NO_FACTS, Facts, facts_of
from fairway.serve.load import load


def score_text(
    target: str,
    paths: Sequence[Path],
    settings: Sequence[str],
    listener: Listener,
    *,
    prove: bool = False,
    adapt: str | None = None,
) -> dict[str, Any]:
    """The score of an artifact on the files named or a run's validation text; proved, or with adaptation, if asked."""
    config = EvaluateConfig.read(override({}, settings), origin="settings")
    use_threads()
    model = load(artifact_path(target))
    documents, facts = _text_and_facts(target, paths)
    if adapt is not None:
        if prove:
            raise ConfigError("An adapted score has no proof by compression; ask for --prove or --adapt.")
        return evaluate_adapted(model, documents, config, _adaptation(adapt), facts=facts, listener=listener).plain()
    score = evaluate(model, documents, config, facts=facts, listener=listener)
    if not prove:
        return score.plain()
    return {**score.plain(), "proof": proof.prove(model, documents, score, config, listener=listener).plain()}


def _text_and_facts(target: str, paths: Sequence[Path]) -> tuple[list[bytes], Facts]:
    if paths:
        return _whole_files(paths), NO_FACTS
    if not Path(target).is_dir():
        raise ConfigError(f"{target} is no run folder; to score a file, say on what: --text FILE.")
    manifest = open_folder(target).prepare(silent)
    return manifest.validation_documents(), facts_of(manifest)


def _adaptation(text: str) -> AdaptConfig:
    settings = [part if "=" in part else f"method={part}" for part in text.split(",")]
    return AdaptConfig.read(override({}, settings), origin="--adapt")


def score_run(folder: str, settings: Sequence[str], listener: Listener) -> dict[str, Any]:
    """The score of a run's artifact on its own validation text, by a fresh process."""
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder} is no run folder; to score a file, say on what: --text FILE.")
    if settings:
        raise ConfigError("A run is scored by its own recipe; settings go with --text.")
    return open_folder(folder).evaluate(listener)


def documents_for(target: str, paths: Sequence[Path], most: str) -> list[bytes]:
    """Text to measure on: the files named, else the validation text of a run; nothing for a file alone.

    A sample of whole documents of at most `most` (`200kB`) together, one at least.
    """
    try:
        limit = parse_bytes(most)
    except ValueError as error:
        raise ConfigError(f"--sample: {error}.") from None
    if paths:
        return sample(_whole_files(paths), limit)
    if Path(target).is_dir():
        return sample(open_folder(target).prepare(silent).validation_documents(), limit)
    return []


def _whole_files(paths: Sequence[Path]) -> list[bytes]:
    documents = []
    for path in find_files([str(path) for path in paths]):
        with opened(path) as file:
            documents.append(file.read())
    return documents
