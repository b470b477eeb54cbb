"""Errors for people."""

import inspect

import pytest

from fairway.core import errors
from fairway.core.errors import FairwayError, Interrupted, suggestion

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FairwayError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_says_what_it_is_for_and_ends_the_command_with_a_failure(
    kind: type[FairwayError],
) -> None:
    assert kind.__doc__
    assert kind.exit_code in (2, 130)
    assert str(kind("the width is 7; 8 would work")) == "the width is 7; 8 would work"


def test_an_interruption_ends_with_the_shells_code_for_it() -> None:
    assert Interrupted("saved").exit_code == 130


def test_the_nearest_known_name_is_suggested() -> None:
    assert suggestion("widht", ["width", "depth", "context"]) == ' Did you mean "width"?'


def test_nothing_is_suggested_for_a_name_like_no_other() -> None:
    assert suggestion("zzz", ["width", "depth"]) == ""
