import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def ran(name: str, *arguments: object) -> str:
    """What an example prints; it must end well and say nothing on stderr."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the training example fills, and what it said."""
    folder = tmp_path_factory.mktemp("example") / "run"
    return folder, ran("train_tiny.py", folder)


def test_every_example_is_tried_here():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {"train_tiny.py", "generate_text.py", "compress_text.py"}


def test_training_ends_with_a_score_from_a_file_within_its_cap(trained):
    folder, said = trained
    assert "step 30: loss" in said
    assert "bits per byte from" in said
    assert 0 < (folder / "model.fwy").stat().st_size <= 30_000


def test_a_model_writes(trained):
    said = ran("generate_text.py", trained[0] / "model.fwy", "import ")
    assert said.startswith("import ")
    assert len(said) > len("import ") + 5


def test_a_model_compresses_as_well_as_its_score_says(trained):
    score, real = (
        ran("compress_text.py", trained[0] / "model.fwy").splitlines()[1].split(" bits per byte, really compressed ")
    )
    assert float(real) == pytest.approx(float(score.removeprefix("score ")), rel=0.05)
