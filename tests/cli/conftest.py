from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest

from fairway.cli.console.application import invoke

ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes" / "tiny.yaml"
SMALLER = ["model.width=32", "budget.bytes=12kB", "budget.steps=6", "data.max_bytes=300kB", "evaluate.max_bytes=6kB"]
SMALLER += ["train.batch=4", "sample.tokens=20"]


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Command:
    """The command line, called in this process."""

    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Answer:
        self.capture.readouterr()
        code = invoke([str(argument) for argument in arguments])
        told = self.capture.readouterr()
        return Answer(code, told.out, told.err)

    def refused(self, *arguments: object) -> str:
        """The message of a command that must end with code 2, nothing on stdout and no traceback."""
        answer = self(*arguments)
        assert answer.code == 2, answer
        assert answer.out == ""
        assert "Traceback" not in answer.err
        return answer.err


@pytest.fixture
def fairway(capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls a verb and gives its exit code, stdout and stderr."""
    return Command(capsys)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, made once by `fairway run`; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with chdir(folder.parent):
        assert invoke(["run", str(TINY), *SMALLER, "--folder", str(folder)]) == 0
    return folder
