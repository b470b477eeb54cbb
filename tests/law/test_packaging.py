"""What is declared, pinned and promised in words agrees with the code."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fairway.cli.console.application import verbs
from fairway.core.config import read_yaml
from fairway.run import Recipe
from law.house import PACKAGE, ROOT, SLOTS, File, files, imported, listed, modules, slot_folder

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CORE = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
EXTRAS = {
    name: [Requirement(text) for text in texts] for name, texts in PROJECT["project"]["optional-dependencies"].items()
}
GROUPS = [
    Requirement(text) for texts in PROJECT["dependency-groups"].values() for text in texts if isinstance(text, str)
]
MODULES = {"pyyaml": "yaml"}
"""Distributions whose module has another name."""


def module_of(requirement: Requirement) -> str:
    return MODULES.get(requirement.name, requirement.name.replace("-", "_"))


def foreign(file: File) -> set[str]:
    """Top-level modules a file imports that are neither ours nor Python's."""
    tops = {name.split(".")[0] for name in imported(file.tree)}
    return tops - sys.stdlib_module_names - {"fairway"}


def test_the_package_imports_nothing_that_it_does_not_declare() -> None:
    declared = {module_of(one) for one in CORE} | {module_of(one) for group in EXTRAS.values() for one in group}
    stray = [
        f"{file.name} imports {name}" for file in files("src") for name in foreign(file) - declared - {"pydantic_core"}
    ]
    assert not stray, listed(stray)


def test_the_package_declares_nothing_that_it_does_not_import() -> None:
    used = {name for file in files("src") for name in foreign(file)}
    assert {module_of(one) for one in CORE} <= used
    text = "".join(file.text for file in files("src"))
    assert all(module_of(one) in text for group in EXTRAS.values() for one in group)


def test_an_optional_library_is_imported_where_it_is_needed_and_nowhere_else() -> None:
    """Files named after a library are for it: `ops/<op>/triton.py`."""
    for name in {module_of(one) for group in EXTRAS.values() for one in group}:
        users = [file.name for file in files("src") if name in foreign(file) and not file.name.endswith(f"/{name}.py")]
        assert len(users) <= 2, f"{name} is imported by {users}"


def test_no_file_imports_what_needs_an_optional_library_but_its_own_kind() -> None:
    """A file named after a library is loaded by name, where a device asks for it."""
    names = {module_of(one) for group in EXTRAS.values() for one in group}
    kinds = {file.name: file.name.rpartition("/")[2].removesuffix(".py") for file in files("src")}
    guests = {name: kind for name, kind in kinds.items() if kind in names and "/ops/" in name}
    modules = {name.removeprefix("src/").removesuffix(".py").replace("/", "."): kind for name, kind in guests.items()}
    stray = [
        f"{file.name} imports {module}"
        for file in files("src")
        for module in imported(file.tree)
        if module in modules and kinds[file.name] != modules[module]
    ]
    assert guests
    assert not stray, listed(stray)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_requirement_is_pinned_to_a_version_that_meets_it() -> None:
    versions = {canonicalize_name(name): version for name, version in pins().items()}
    build = [Requirement(text) for text in PROJECT["build-system"]["requires"]]
    for requirement in [*CORE, *GROUPS, *build, *(one for group in EXTRAS.values() for one in group)]:
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


def test_pins_are_exact_sorted_and_name_no_host() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(lines)
    assert all(re.fullmatch(r"[a-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)


def test_the_version_is_said_once_and_the_same_everywhere() -> None:
    said = re.search(r'^__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text(), re.MULTILINE)
    assert said is None or said[1] == PROJECT["project"]["version"]


def test_the_readme_lists_every_verb_and_no_other() -> None:
    section = (ROOT / "README.md").read_text().partition("## Verbs")[2].partition("## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)
    assert sorted(rows) == sorted(name.replace("_", "-") for name in verbs())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/flow.md", "docs/facts.md", "CHANGELOG.md"])
def test_commands_and_paths_in_prose_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) <= targets
    known = {name.replace("_", "-") for name in verbs()}
    assert set(re.findall(r"\bfairway ([a-z-]+)(?= [^|]|`)", text)) - {"run"} <= known
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), f"{page} links to {link}"
    for path in re.findall(r"`(recipes/[\w./]+|src/fairway/[\w./]+\.py|tests/[\w./]+\.py)`", text):
        assert (ROOT / path).exists(), f"{page} names {path}"


def test_contributing_has_a_row_for_every_slot() -> None:
    rows = set(re.findall(r"^\| `([a-z]+/[a-z]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    present = {slot.replace(".", "/") for slot in SLOTS if slot_folder(slot).is_dir() and modules(slot_folder(slot))}
    assert rows == present


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_valid_and_named_after_its_file(path: Path) -> None:
    recipe = Recipe.read(read_yaml(path), origin=str(path))
    assert recipe.name == path.stem
    assert Recipe.read(yaml.safe_load(yaml.safe_dump(recipe.plain()))) == recipe


@pytest.mark.parametrize("path", sorted((ROOT / "docs/decisions").glob("*.md")), ids=lambda path: path.name)
def test_every_decision_is_numbered_and_says_why(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {int(path.name[:4])}. ")
    assert all(f"**{part}.**" in text for part in ("Context", "Decision", "Consequences"))


def test_every_fact_has_its_date_machine_and_number() -> None:
    rows = [line for line in (ROOT / "docs" / "facts.md").read_text().splitlines() if line.startswith("| 2")]
    assert rows
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 6
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", cells[0])
        assert all(cells)
        assert re.search(r"\d", cells[3])
