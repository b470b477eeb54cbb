"""Imports only point up the stream: the contracts hold, and each of them catches a planted violation."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from law.house import ROOT, SLOTS, copied, modules, slot_folder

LINT = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(cache_dir=None))"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def lint(home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(home)}
    command = [sys.executable, "-c", LINT]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = copied(tmp_path_factory.mktemp("house"))
    shutil.copy(ROOT / "pyproject.toml", home)
    return home


def test_every_contract_is_kept(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("planted", "imports", "broken"),
    [
        ("core/log.py", "fairway.model.parts", "Imports only point up the stream"),
        ("model/lm.py", "fairway.data.parts", "Imports only point up the stream"),
        ("artifact/format.py", "fairway.ops.precision", "Imports only point up the stream"),
        ("ops/precision.py", "fairway.cli", "Imports only point up the stream"),
        ("serve/__init__.py", "fairway.data.source.stdlib", "Serving never reaches what trains"),
        ("core/errors.py", "numpy", "A recipe is read without torch or numpy"),
        ("model/ffn/gated.py", "fairway.model.ffn.ungated", "Techniques of model.ffn stand alone"),
    ],
)
def test_a_planted_violation_breaks_its_contract(copy: Path, planted: str, imports: str, broken: str) -> None:
    path = copy / "fairway" / planted
    text = path.read_text()
    try:
        path.write_text(text + f"\nimport {imports}\n")
        done = lint(copy)
    finally:
        path.write_text(text)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{broken} BROKEN" in done.stdout


def test_a_forbidden_module_is_found_through_others(copy: Path) -> None:
    """`serve` imports `data.parts`, which is allowed; what that imports counts too."""
    middle = copy / "fairway" / "data" / "parts.py"
    user = copy / "fairway" / "serve" / "load.py"
    before = middle.read_text(), user.read_text()
    try:
        middle.write_text(before[0] + "\nimport fairway.data.source.stdlib\n")
        user.write_text(before[1] + "\nimport fairway.data.parts\n")
        done = lint(copy)
    finally:
        middle.write_text(before[0])
        user.write_text(before[1])
    assert "Serving never reaches what trains BROKEN" in done.stdout


def test_a_package_that_no_layer_names_breaks_the_house(copy: Path) -> None:
    stray = copy / "fairway" / "stray.py"
    stray.write_text("")
    try:
        done = lint(copy)
    finally:
        stray.unlink()
    assert done.returncode == 1
    assert "Imports only point up the stream BROKEN" in done.stdout
    assert "fairway.stray" in done.stdout


def test_every_slot_has_its_contract_of_independence() -> None:
    guarded = {contract["modules"][0] for contract in CONTRACTS if contract["type"] == "independence"}
    assert guarded == {f"fairway.{slot}.*" for slot in SLOTS}


def test_a_slot_with_two_techniques_exists_to_be_guarded() -> None:
    assert len(modules(slot_folder("model.ffn"))) >= 2


@pytest.mark.parametrize("module", ["fairway", "fairway.core.config", "fairway.cli", "fairway.cli.console.application"])
def test_the_doors_open_without_torch(module: str) -> None:
    code = f"import {module}, sys; print(sorted({{'torch', 'numpy', 'transformers'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_serving_loads_nothing_that_trains() -> None:
    code = (
        "import fairway.serve.load, sys;"
        "print([name for name in sys.modules if name.startswith(('fairway.train', 'fairway.optim', 'fairway.loss',"
        " 'fairway.compress', 'fairway.data.source'))])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
