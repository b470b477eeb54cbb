import re
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
    assert names == {
        "train_tiny.py",
        "generate_text.py",
        "compress_text.py",
        "deep_compression_digits.py",
        "slimming_convnet.py",
        "point_functions.py",
    }


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


@pytest.mark.slow
def test_deep_compression_keeps_the_accuracy_at_a_fraction_of_the_bytes(tmp_path: Path):
    pytest.importorskip("sklearn")
    said = ran("deep_compression_digits.py", tmp_path / "digits.fwy")
    dense, _, restored = map(float, re.findall(r"([\d.]+) %", said))
    assert restored >= dense - 0.5
    ratio = float(re.findall(r"ratio ([\d.]+)", said)[0])
    assert ratio > 20
    assert f"file {(tmp_path / 'digits.fwy').stat().st_size:,}," in said


@pytest.mark.slow
def test_a_slimmed_network_is_smaller_and_computes_what_the_masked_one_does():
    pytest.importorskip("sklearn")
    for line in ran("slimming_convnet.py").splitlines():
        assert float(re.findall(r"masked - rebuilt (\S+)", line)[0]) < 1e-6
        dense, _, final = map(float, re.findall(r"([\d.]+) %", line))
        assert final > dense - 5
        assert float(re.findall(r"operations ([\d.]+)x", line)[0]) > 1.5


def test_point_functions_are_told_apart_by_four_properties():
    rows = {line[:20].strip(): line for line in ran("point_functions.py").splitlines()[1:]}
    assert {name for name, line in rows.items() if not line.endswith("fit")} == {"cubic", "relu", "shifted tanh"}
    assert rows["relu"].split()[-4:] == ["yes", "no", "yes", "yes"]
    assert rows["shifted tanh"].split()[-4:] == ["no", "yes", "yes", "yes"]
