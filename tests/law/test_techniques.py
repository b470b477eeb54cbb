"""Every file in a slot's folder is a technique: one card, one class, one source, one line."""

import ast
import re
from pathlib import Path

import pytest

from fairway.core.config import Slot, Source, Technique
from law.house import SLOTS, files, listed, modules, slot_folder

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
    assert 10 <= len(summary) <= 120, f"the first line of {path.name} is no description: {summary!r}"
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


REQUIRED = {
    ("data.source", "path"),
    ("data.source", "name"),
    ("data.source", "model"),
    ("data.tokenizer", "path"),
}
"""Settings that no default could guess: where the user's own text is."""
