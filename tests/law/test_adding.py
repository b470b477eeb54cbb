"""Every example of docs/adding.md is a complete technique: found, chosen by one line, held to the contract, at work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from law.house import ROOT, SLOTS, copied, modules, slot_folder

PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"`src/(fairway/[\w/]+\.py)`\n+```python\n(.*?)```", PAGE, re.DOTALL))
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with every example in its slot."""
    home = copied(tmp_path_factory.mktemp("house"))
    for name, text in EXAMPLES.items():
        assert not (home / name).exists(), f"{name} exists in the package; the example needs another name"
        (home / name).write_text(text, encoding="utf-8")
    return home


def run(house: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(house), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )


def contract(house: Path, kinds: str, *files: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / "tests" / "contract" / file) for file in files]
    return run(house, "-m", "pytest", *paths, "-p", "no:cacheprovider", "-k", kinds, "--tb=short")


def test_there_is_an_example_for_every_slot_that_has_techniques() -> None:
    slots = {".".join(Path(name).parent.parts[1:]) for name in EXAMPLES}
    assert slots == {slot for slot in SLOTS if slot_folder(slot).is_dir() and modules(slot_folder(slot))}


def test_every_example_appears_can_be_chosen_and_works(house: Path) -> None:
    done = run(house, str(HERE / "examples_at_work.py"), str(house))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(Path(name).stem for name in EXAMPLES)


def test_every_example_is_in_the_house_style(house: Path) -> None:
    paths = [str(house / name) for name in EXAMPLES]
    for command in (["check"], ["format", "--check"]):
        arguments = ["-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), *paths]
        done = run(house, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_file_is_held_to_the_contract_of_its_slot(house: Path) -> None:
    done = contract(house, "average or cubed or peak", "test_mixers.py", "test_ffns.py", "test_norms.py")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert "average" in done.stdout or re.search(r"^\.{3,}", done.stdout, re.MULTILINE), done.stdout


def test_a_new_file_with_a_fault_breaks_its_contract(house: Path) -> None:
    path = house / "fairway/model/mixer/average.py"
    text = path.read_text()
    leaky = text.replace(".cumsum(dim=1)", ".sum(dim=1, keepdim=True).expand_as(x_BTD)")
    assert leaky != text
    try:
        path.write_text(leaky)
        done = contract(house, "average and every_mixer_keeps_its_contract", "test_mixers.py")
    finally:
        path.write_text(text)
    assert done.returncode == 1, done.stdout + done.stderr


@pytest.mark.slow
def test_every_example_keeps_the_contract_of_its_slot(house: Path) -> None:
    """But for those whose contract test must be told an input, and deflate, far from the entropy as it is."""
    told = ("test_sources.py", "test_packings.py")
    files = [path.name for path in (ROOT / "tests" / "contract").glob("test_*.py") if path.name not in told]
    done = contract(house, " or ".join(Path(name).stem for name in EXAMPLES), *files)
    failed = set(re.findall(r"^FAILED \S*::(\w+\[\S*\])", done.stdout, re.MULTILINE))
    near = {f"test_the_bytes_are_near_the_entropy[{name}-deflate]" for name in ("gaussian", "ternary", "skewed")}
    assert failed == near | {"test_the_estimate_from_frequencies_is_within_one_per_cent[deflate]"}, done.stdout[-3000:]
