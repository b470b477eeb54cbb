import subprocess
import sys

import pytest

from fairway.cli.console.application import application, invoke, verbs

HEAVY = "{'torch', 'numpy', 'pydantic'}"


def loaded_after(arguments: list[str]) -> tuple[str, int]:
    """Which heavy packages a process has imported once it answered, and its exit code."""
    code = (
        "import sys\nfrom fairway.cli.console.application import invoke\n"
        f"code = invoke({arguments!r})\n"
        f"print('LOADED', sorted({HEAVY} & set(sys.modules)))\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.splitlines()[-1], done.returncode


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["--version"], 0),
        (["run", "--byts", "3"], 2),
        (["rnu"], 2),
        (["generate"], 2),
        (["generate", "model.fwy", "--tokens", "many"], 2),
    ],
)
def test_torch_is_not_loaded_before_the_arguments_are_understood(arguments, code):
    assert loaded_after(arguments) == ("LOADED []", code)


def test_every_verb_of_the_issue_is_there():
    wanted = {
        "run",
        "plan",
        "prepare",
        "train",
        "compress",
        "evaluate",
        "generate",
        "inspect",
        "techniques",
        "schema",
        "doctor",
    }
    assert wanted <= set(verbs())


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_help_with_an_example_and_every_option_explained(verb, capsys):
    assert invoke([verb.replace("_", "-"), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: fairway {verb.replace('_', '-')}" in text
    command = application()[verb.replace("_", "-")]
    for argument in command.assemble_argument_collection():
        assert argument.parameter.help, argument.name


def test_a_misspelt_option_is_one_line_with_the_right_one(capsys):
    assert invoke(["run", "--byts", "3"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "--bytes" in told.err
    assert "fairway run --help" in told.err


def test_python_m_fairway_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "fairway", "rnu"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert 'Did you mean "run"?' in done.stderr
    assert "Traceback" not in done.stderr
