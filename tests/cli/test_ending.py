import os
import signal
import subprocess
import sys

import pytest

from fairway.cli.console.ending import can_resume_by, ends_well
from fairway.core.errors import ConfigError, Interrupted


def raising(error: BaseException):
    def action() -> int:
        can_resume_by("fairway run runs/x")
        raise error

    return action


def test_an_error_of_the_caller_is_one_message_and_code_two(capsys):
    assert ends_well(raising(ConfigError("model.width is 7; 8 would work."))) == 2
    assert capsys.readouterr() == ("", "model.width is 7; 8 would work.\n")


@pytest.mark.parametrize("stop", [Interrupted("Stopped after step 3."), KeyboardInterrupt()])
def test_a_stop_says_how_to_go_on_and_gives_130(stop, capsys):
    assert ends_well(raising(stop)) == 130
    told = capsys.readouterr().err
    assert told.startswith("Stopped")
    assert "fairway run runs/x" in told


def test_a_fault_of_our_own_is_not_hidden():
    with pytest.raises(AssertionError):
        ends_well(raising(AssertionError("broken promise")))


def test_sigterm_stops_like_ctrl_c_and_the_old_handler_comes_back(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def action() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert ends_well(action) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == "Stopped.\n"


def test_a_reader_that_goes_away_is_no_error():
    code = (
        "from fairway.cli.console.ending import ends_well\n"
        "import sys\n"
        "def action():\n    for _ in range(100_000): print('x' * 100)\n    return 0\n"
        "sys.exit(ends_well(action))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(100)
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0
    assert told == b""
