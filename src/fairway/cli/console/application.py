"""Finds the verbs and runs the one that was asked for."""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from cyclopts import App, CycloptsError, Group

import fairway.cli
from fairway.cli.console.ending import FAILED, ends_well

HELP = """Trains, compresses, proves and serves the best small language model that fits a budget of bytes and of time.

Start with `fairway run`, or `fairway plan recipe.yaml` to see what would fit.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb and ends the process with its exit code."""
    sys.exit(invoke(sys.argv[1:] if arguments is None else arguments))


def invoke(arguments: Sequence[str]) -> int:
    """Runs one verb and returns the exit code: 0 done, 1 our own fault, 2 the caller's, 130 stopped."""
    return ends_well(lambda: _parsed(arguments))


def application() -> App:
    """The parser of all verbs."""
    app = App(
        name="fairway",
        help=HELP,
        version=lambda: version("fairway"),
        help_format="markdown",
        result_action="return_value",
    )
    app["--help"].group = app["--version"].group = Group("Options", sort_key=99)
    for name in verbs():
        module = importlib.import_module(f"fairway.cli.{name}")
        function: Callable[..., Any] = getattr(module, name)
        app.command(function, name=name.replace("_", "-"), group=_group(getattr(module, "GROUP", "Other")))
    return app


def verbs() -> list[str]:
    """The names of the verbs' modules."""
    return sorted(info.name for info in pkgutil.iter_modules(fairway.cli.__path__) if not info.ispkg)


def _parsed(arguments: Sequence[str]) -> int:
    try:
        result = application()(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        verb = f" {arguments[0]}" if arguments and arguments[0].replace("-", "_") in verbs() else ""
        print(f"{' '.join(str(error).split())} See `fairway{verb} --help`.", file=sys.stderr)
        return FAILED
    return result if isinstance(result, int) else 0


_GROUPS = {
    title: Group(title, sort_key=place)
    for place, title in enumerate(("Making a model", "Using a model", "Looking things up", "Other"))
}


def _group(title: str) -> Group:
    return _GROUPS.setdefault(title, Group(title, sort_key=len(_GROUPS)))
