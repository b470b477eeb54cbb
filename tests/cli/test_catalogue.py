import json
from pathlib import Path

import jsonschema
import pytest
import yaml

import fairway.model.ffn
from fairway.cli.console.catalogue import catalogue, slots
from fairway.core.config import forget_modules

TECHNIQUE = '''"""Planted: twice the input.

`y = 2 x`.
"""
from fairway.core.config import Source
from fairway.model.parts import NO_AUX, NO_CONTEXT, Ffn, FfnConfig, Site

SOURCE = Source("Nobody", 2031, "arXiv:3101.00001")


class Config(FfnConfig):
    """No settings."""

    def build(self, width, site=Site()):
        return Planted()


class Planted(Ffn):
    """Twice the input."""

    def forward(self, x_BTD, state=None, context=NO_CONTEXT):
        return 2 * x_BTD, (), NO_AUX
'''


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file `planted.py` in the slot of feed-forwards."""
    (tmp_path / "planted.py").write_text(TECHNIQUE)
    monkeypatch.setattr(fairway.model.ffn, "__path__", [*fairway.model.ffn.__path__, str(tmp_path)])
    forget_modules()
    yield
    monkeypatch.undo()
    forget_modules()


@pytest.fixture
def schema(fairway) -> jsonschema.Draft202012Validator:
    found = json.loads(fairway("schema").out)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_every_slot_of_the_house_is_found():
    wanted = {"model.mixer", "model.ffn", "model.norm", "model.position", "model.embedding", "model.depth"}
    wanted |= {
        "data.source",
        "data.tokenizer",
        "optim.optimizer",
        "optim.schedule",
        "train.precision",
        "train.recompute",
    }
    wanted |= {"compress.prune", "compress.quantize", "artifact.coder", "artifact.packing"}
    assert wanted <= {entry["slot"] for entry in catalogue()}


def test_no_slot_is_listed_twice():
    packages = [slot.package for _, slot in slots()]
    assert len(packages) == len(set(packages))


def test_every_technique_has_a_summary_and_a_source():
    for entry in catalogue():
        assert len(entry["summary"]) > 5, entry
        assert entry["author"], entry
        assert 1900 < entry["year"] < 2100, entry
        assert entry["reference"], entry


def test_a_new_file_in_a_slot_appears_and_can_be_chosen(planted, fairway, tmp_path: Path):  # noqa: ARG001
    found = [entry for entry in json.loads(fairway("techniques", "ffn", "--json").out) if entry["kind"] == "planted"]
    assert len(found) == 1
    assert found[0]["summary"] == "Planted: twice the input"
    assert found[0]["path"] == "model.ffn"
    assert "Nobody 2031" in fairway("techniques", "model.ffn").out
    recipe = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
    plan = fairway("plan", recipe, "model.ffn.kind=planted", "model.width=32", "--json")
    assert plan.code == 0, plan.err
    assert "ffn" not in json.loads(plan.out.splitlines()[-1])["parameters"]


def test_the_planted_file_is_gone_afterwards():
    assert "planted" not in {entry["kind"] for entry in catalogue("model.ffn")}


def test_editors_accept_the_recipes_of_the_repository(schema):
    for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"):
        assert [error.message for error in schema.iter_errors(yaml.safe_load(path.read_text()))] == [], path


def test_editors_accept_a_stored_recipe(schema, tiny_run: Path):
    stored = yaml.safe_load((tiny_run / "recipe.yaml").read_text())
    assert [error.message for error in schema.iter_errors(stored)] == []


@pytest.mark.parametrize(
    "recipe",
    [
        {"model": {"mixer": "attention"}},
        {"model": {"mixer": ["attention", {"kind": "attention", "window": 32}]}},
        {"model": {"depth": 6}},
        {"budget": {"bytes": "1.5 MB", "seconds": "3m"}},
    ],
)
def test_editors_accept_every_short_form(schema, recipe):
    assert list(schema.iter_errors(recipe)) == []


@pytest.mark.parametrize(
    "recipe",
    [
        {"modle": {}},
        {"model": {"widht": 64}},
        {"model": {"mixer": {"kind": "atention"}}},
        {"model": {"mixer": {"kind": "attention", "haeds": 4}}},
        {"budget": {"bytes": "500 quids"}},
        {"budget": {"seconds": -1}},
    ],
)
def test_editors_mark_what_a_recipe_would_refuse(schema, recipe):
    assert list(schema.iter_errors(recipe))


def test_every_reference_in_the_schema_leads_somewhere(schema):
    names = set(schema.schema["$defs"])
    used = {part.split('"')[0] for part in json.dumps(schema.schema).split('"#/$defs/')[1:]}
    assert used <= names
