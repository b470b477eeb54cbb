"""Events and notices."""

import dataclasses
import logging

import pytest

from fairway.core.log import Event, say_once, silent


def test_an_event_cannot_be_changed_by_whoever_hears_it() -> None:
    event = Event("train", 0.5, {"loss": 1.0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.phase = "other"  # type: ignore[misc]


def test_two_events_do_not_share_their_figures() -> None:
    first, second = Event("train"), Event("train")
    first.figures["loss"] = 1.0
    assert second.figures == {}


def test_the_silent_listener_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent(Event("train", message="hello"))
    assert capsys.readouterr() == ("", "")


def test_a_notice_is_said_once_and_another_one_too(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fairway"):
        for _ in range(3):
            say_once("the fast path is off: no compiler")
        say_once("bfloat16 is slow here")
    assert caplog.messages == ["the fast path is off: no compiler", "bfloat16 is slow here"]
