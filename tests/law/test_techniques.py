"""Every file in a slot's folder is a technique: one card, one class, one source, one line."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fairway.core.config import Slot, Source, Technique
from law.house import PACKAGE, SLOTS, files, listed, modules, slot_folder

PRESENT = [slot for slot in SLOTS if slot_folder(slot).is_dir() and modules(slot_folder(slot))]
TECHNIQUES = [(slot, path.stem) for slot in PRESENT for path in modules(slot_folder(slot))]


def names(path: Path) -> dict[str, ast.stmt]:
    """Top-level assignments and classes of a file."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def test_every_slot_of_the_code_is_known_to_the_laws() -> None:
    used = {
        match
        for file in files("src")
        for match in re.findall(r"""Slot\(\s*["']fairway\.([a-z_.]+)["']""", file.text)
        if "mixer: Annotated" not in file.text or file.name != "src/fairway/core/config.py"
    }
    assert used <= set(SLOTS), used - set(SLOTS)
    assert used >= {"model.mixer", "data.source", "artifact.coder"}


def test_the_first_slots_hold_a_technique_each() -> None:
    needed = {slot for slot in SLOTS if slot.split(".")[0] in ("model", "data", "artifact", "optim")}
    assert needed <= set(PRESENT), needed - set(PRESENT)


@pytest.mark.parametrize(("slot", "name"), TECHNIQUES, ids=lambda value: value)
def test_every_technique_says_what_it_is_and_where_it_comes_from(slot: str, name: str) -> None:
    path = slot_folder(slot) / f"{name}.py"
    found = names(path)
    document = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    summary = document.partition("\n")[0]
    assert "Config" in found
    assert "SOURCE" in found or "SOURCES" in found
    assert 10 <= len(summary) <= 110, f"the first line of {path.name} is no description: {summary!r}"
    assert ("KINDS" in found) or ("SUMMARIES" not in found), "SUMMARIES without KINDS"


@pytest.mark.parametrize("slot", PRESENT)
def test_every_technique_of_a_slot_is_found_with_its_card(slot: str) -> None:
    found = Slot(f"fairway.{slot}", "").techniques()
    assert {technique.config.__module__.rpartition(".")[2] for technique in found} == {
        path.stem for path in modules(slot_folder(slot))
    }
    kinds = [technique.kind for technique in found]
    assert len(kinds) == len(set(kinds)), "two techniques of one name"
    for technique in found:
        assert technique.slot == slot
        assert technique.summary.strip()
        assert not technique.summary.endswith(".")
        assert isinstance(technique.source, Source)
        assert technique.source.author
        assert technique.source.reference
        assert technique.config.__doc__
        assert issubclass(technique.config, Technique)


@pytest.mark.parametrize("slot", PRESENT)
def test_every_setting_of_a_technique_has_a_default(slot: str) -> None:
    needy = [
        f"{technique.kind}.{name}"
        for technique in Slot(f"fairway.{slot}", "").techniques()
        for name, field in technique.config.model_fields.items()
        if field.is_required() and (slot, name) not in REQUIRED
    ]
    assert not needy, listed(needy)


REQUIRED = {("data.source", "path"), ("data.source", "name"), ("data.tokenizer", "path")}
"""Settings that no default could guess: where the user's own text is."""


FFN = '''"""Feed-forward with the cube of the ReLU.

`y = relu(x W_in)^3 W_out`. Shape key: B batch, T time, D width.
"""

from torch import Tensor
from torch.nn import functional

from fairway.core.config import Source
from fairway.model.linear import Linear
from fairway.model.parts import NO_AUX, NO_CONTEXT, Aux, Context, Ffn, FfnConfig, Site, State

SOURCE = Source("So et al.", 2021, "arXiv:2109.08668")


class Config(FfnConfig):
    """Settings of a cubed ReLU."""

    def build(self, width: int, site: Site = Site()) -> Ffn:
        return Cubed(width)


class Cubed(Ffn):
    """`forward(x_BTD, state, context) -> (y_BTD, (), aux)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = Linear(width, 2 * width)
        self.output = Linear(2 * width, width, gain=0.0)

    def forward(self, x_BTD: Tensor, state: State | None = None, context: Context = NO_CONTEXT) -> tuple[Tensor, State, Aux]:
        return self.output(functional.relu(self.input(x_BTD)) ** 3), (), NO_AUX
'''

USE = """
import torch
from fairway.core.config import override
from fairway.model import lm
from fairway.model.lm import FFN, ModelConfig
assert lm.__file__.startswith({home!r}), lm.__file__
found = {{technique.kind: technique for technique in FFN.techniques()}}
assert found["cubed"].summary == "Feed-forward with the cube of the ReLU", found
assert "cubed" in str(ModelConfig.model_json_schema())
model = ModelConfig.read(override({{}}, ["model.ffn.kind=cubed"])["model"]).build(256, seed=0)
assert model.logits(model(torch.zeros(1, 4, dtype=torch.int64)).hidden_BTD).shape == (1, 4, 256)
print(len(found))
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package, with a new technique in the folder of the feed-forwards."""
    shutil.copytree(PACKAGE, tmp_path / "fairway", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fairway" / "model" / "ffn" / "cubed.py").write_text(FFN)
    return tmp_path


def test_a_new_file_in_a_slot_appears_can_be_chosen_and_runs(house: Path) -> None:
    environment = {"PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", USE.format(home=str(house))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


CONTRACT = """
import pytest, sys
from pathlib import Path
sys.exit(pytest.main([{tests!r}, "-q", "-p", "no:cacheprovider", "-k", "cubed", "--rootdir", {root!r}, "-c", {settings!r}]))
"""


def contract(house: Path) -> subprocess.CompletedProcess[str]:
    root = PACKAGE.parents[1]
    arguments = {
        "tests": str(root / "tests" / "contract"),
        "root": str(root),
        "settings": str(root / "pyproject.toml"),
    }
    environment = {"PYTHONPATH": str(house), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", CONTRACT.format(**arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_new_file_in_a_slot_is_held_to_the_contract(house: Path) -> None:
    kept = contract(house)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert re.search(r"[1-9]\d* passed|^\.+ ", kept.stdout, re.MULTILINE), kept.stdout
    leaky = FFN.replace(
        "return self.output(", "x_BTD = x_BTD + x_BTD.mean(dim=1, keepdim=True)\n        return self.output("
    )
    (house / "fairway" / "model" / "ffn" / "cubed.py").write_text(leaky)
    assert contract(house).returncode == 1
