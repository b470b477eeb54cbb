"""From what was typed to a recipe or a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fairway.cli.console.ending import can_resume_by
from fairway.core.budget import parse_bytes, parse_seconds
from fairway.core.errors import ConfigError
from fairway.plan import fit_to_budget, known_vocabulary, require_room
from fairway.run import Recipe, Run, load_recipe

RUNS = Path("runs")
ARTIFACT = "model.fwy"


def chosen_recipe(target: str, overrides: Sequence[str], size: str | None = None, time: str | None = None) -> Recipe:
    """The recipe that the arguments describe; a dial for bytes or time sizes the model too."""
    path, assignments = split_target(target, overrides)
    recipe = budgeted(path, assignments, size, time)
    if size is None and time is None:
        return recipe
    return fit_to_budget(recipe, fixed=[assignment.partition("=")[0].strip() for assignment in assignments])


def budgeted(path: Path | None, assignments: Sequence[str], size: str | None, time: str | None) -> Recipe:
    """The recipe with what the dials say as its budget; the model stays as it is."""
    dials = [("budget.bytes", "--bytes", size, parse_bytes), ("budget.seconds", "--time", time, parse_seconds)]
    budget = [f"{name}={_quantity(option, text, parse)}" for name, option, text, parse in dials if text is not None]
    return load_recipe(path, [*assignments, *budget])


def open_run(
    target: str,
    overrides: Sequence[str] = (),
    size: str | None = None,
    time: str | None = None,
    folder: Path | None = None,
    *,
    allow_changes: bool = False,
) -> Run:
    """A new run of a recipe, or the run of a folder to go on with."""
    if target and Path(target).is_dir():
        if overrides or size or time or folder:
            raise ConfigError(
                f"{target} is a run with a recipe of its own; to change it, start from {target}/recipe.yaml "
                "in another --folder."
            )
        run = open_folder(target)
        run.allow_changes = allow_changes
        return run
    recipe = chosen_recipe(target, overrides, size, time)
    vocabulary = known_vocabulary(recipe)
    if vocabulary is not None:
        require_room(recipe, vocabulary)
    run = Run.create(recipe, folder or RUNS / recipe.name, allow_changes=allow_changes)
    can_resume_by(f"fairway run {run.folder}")
    return run


def open_folder(folder: str) -> Run:
    """The run of a folder that exists."""
    if not Path(folder).is_dir():
        raise ConfigError(f"There is no run folder {folder}.")
    can_resume_by(f"fairway run {folder}")
    return Run.open(Path(folder))


def artifact_path(target: str) -> Path:
    """An artifact's file, given by itself or as the run folder that holds it."""
    path = Path(target)
    return path / ARTIFACT if path.is_dir() else path


def split_target(target: str, overrides: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The recipe's path, and the assignments; a first argument with `=` that is no file is an assignment."""
    if target and "=" in target and not Path(target).exists():
        return None, [target, *overrides]
    return Path(target) if target else None, list(overrides)


def _quantity(option: str, text: str, parse: Callable[[str], float]) -> float:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}.") from None
