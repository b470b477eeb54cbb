"""Recipes: typed, frozen, overridden by path, and open to new techniques by file name."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from fairway.core.config import Config, Slot, Technique, forget_modules, override, read_yaml
from fairway.core.errors import ConfigError

PLAIN = '''"""The straightest line."""

from fairway.core.config import Config as Settings, Source, Technique

SOURCE = Source("Euclid", -300, "Elements I")


class Ends(Settings):
    """Where a line ends."""

    rounded: bool = False


class Config(Technique):
    """Settings of a line."""

    length: int = 6
    gain: float = 1.0
    ends: Ends = Ends()

    @classmethod
    def shorthand(cls, value):
        return {"length": value} if isinstance(value, int) else None
'''

CURVES = '''"""Curves of two sorts."""

from fairway.core.config import Source, Technique

KINDS = ("circle", "spiral")
SUMMARIES = {"circle": "All points as far away"}
SOURCES = {
    "circle": Source("Euclid", -300, "Elements III"),
    "spiral": Source("Archimedes", -225, "On Spirals"),
}


class Config(Technique):
    """Settings of a curve."""

    gain: float = 1.0
    turns: int = 2
'''


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A slot's folder of its own with the techniques `line`, `circle` and `spiral`."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "line.py").write_text(PLAIN)
    (folder / "curve.py").write_text(CURVES)
    monkeypatch.syspath_prepend(tmp_path)
    forget_modules()
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "shapes"]:
        del sys.modules[name]
    forget_modules()


@pytest.fixture
def drawing(shapes: Path) -> type[Config]:  # noqa: ARG001
    class Frame(Config):
        width: int = Field(default=64, ge=8)

    class Drawing(Config):
        shape: Annotated[Technique, Slot("shapes", "line")] = Field(default="line", validate_default=True)  # type: ignore[assignment]
        border: Annotated[tuple[Technique, ...], Slot("shapes", "line", pattern=True)] = Field(
            default="line",  # type: ignore[assignment]
            validate_default=True,
        )
        frame: Frame = Frame()

    return Drawing


def refusal(config: type[Config], data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        config.read(data)
    return str(caught.value)


def test_a_config_cannot_be_changed_after_it_was_checked(drawing: type[Config]) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        drawing.read({}).frame = None  # type: ignore[attr-defined]


def test_an_unknown_field_is_refused_with_the_nearest_known_name(drawing: type[Config]) -> None:
    message = refusal(drawing, {"frame": {"widht": 3}})
    assert "frame" in message
    assert '"widht" is unknown here' in message
    assert 'Did you mean "width"?' in message


def test_a_bad_value_is_named_with_its_path_and_what_would_work(drawing: type[Config]) -> None:
    message = refusal(drawing, {"frame": {"width": 3}})
    assert "frame.width is 3; " in message
    assert "greater than or equal to 8" in message


def test_a_kind_is_the_name_of_a_file_in_the_slots_folder(drawing: type[Config]) -> None:
    assert drawing.read({"shape": {"kind": "line", "length": 9}}).plain()["shape"]["length"] == 9
    assert drawing.read({"shape": "spiral"}).plain()["shape"] == {"kind": "spiral", "gain": 1.0, "turns": 2}


def test_an_unknown_kind_is_refused_with_those_that_would_work(drawing: type[Config]) -> None:
    message = refusal(drawing, {"shape": {"kind": "spirall"}})
    assert "circle, spiral, line would work" in message
    assert 'Did you mean "spiral"?' in message


@pytest.mark.parametrize("value", [False, True, 0, 1.5, [], {}])
def test_a_kind_that_is_no_name_is_never_taken_for_the_default(value: Any, drawing: type[Config]) -> None:
    assert "kind" in refusal(drawing, {"shape": {"kind": value}})


def test_the_plain_form_reads_back_as_an_equal_config(drawing: type[Config]) -> None:
    for data in (
        {},
        {"shape": "circle", "border": ["circle", {"kind": "line", "length": 2}], "frame": {"width": 9}},
    ):
        config = drawing.read(data)
        again = drawing.read(json.loads(json.dumps(config.plain())))
        assert again == config
        assert again.fingerprint() == config.fingerprint()


def test_the_fingerprint_does_not_see_order_or_defaults_written_out(drawing: type[Config]) -> None:
    short = drawing.read({"shape": {"turns": 2, "kind": "circle"}})
    long = drawing.read({"frame": {"width": 64}, "shape": {"kind": "circle", "gain": 1.0, "turns": 2}})
    assert short.fingerprint() == long.fingerprint()


@pytest.mark.parametrize(
    "change",
    ["frame.width=65", "shape.length=7", "shape.kind=circle", "border.gain=1.5", "shape.ends.rounded=true"],
)
def test_the_fingerprint_sees_every_setting(change: str, drawing: type[Config]) -> None:
    base = drawing.read({})
    assert drawing.read(override(base.plain(), [change])).fingerprint() != base.fingerprint()


def test_a_pattern_takes_one_technique_or_a_list(drawing: type[Config]) -> None:
    assert len(drawing.read({"border": "circle"}).plain()["border"]) == 3
    assert [item["kind"] for item in drawing.read({"border": ["circle", "line"]}).plain()["border"]] == [
        "circle",
        "line",
    ]
    assert "empty list" in refusal(drawing, {"border": []})


def test_a_number_can_stand_for_a_technique_that_reads_it(drawing: type[Config]) -> None:
    assert drawing.read({"shape": 4}).plain()["shape"]["length"] == 4
    assert "a kind or a mapping" in refusal(drawing, {"shape": 4.5})


def test_a_file_added_while_the_process_runs_is_a_new_kind(drawing: type[Config], shapes: Path) -> None:
    assert "point" not in Slot("shapes", "line").kinds()
    (shapes / "point.py").write_text(PLAIN.replace("The straightest line", "No length"))
    forget_modules()
    assert [found.summary for found in Slot("shapes", "line").techniques() if found.kind == "point"] == ["No length"]
    assert drawing.read({"shape": "point"}).plain()["shape"]["kind"] == "point"


def test_a_listing_tells_slot_kind_summary_and_source(shapes: Path) -> None:  # noqa: ARG001
    found = {found.kind: found for found in Slot("shapes", "line").techniques()}
    assert set(found) == {"line", "circle", "spiral"}
    assert found["circle"].summary == "All points as far away"
    assert found["spiral"].summary == "Curves of two sorts"
    assert found["spiral"].source.author == "Archimedes"
    assert found["line"].source.year == -300


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (PLAIN.replace("class Config(Technique)", "class Settings2(Technique)"), "has no Config"),
        (PLAIN.replace("SOURCE", "ORIGIN"), "names no SOURCE"),
    ],
)
def test_a_file_that_is_no_technique_is_reported_by_its_name(broken: str, said: str, shapes: Path) -> None:
    (shapes / "blot.py").write_text(broken)
    forget_modules()
    with pytest.raises(ConfigError, match=rf"shapes\.blot {said}"):
        Slot("shapes", "line").techniques()


def test_choosing_one_kind_loads_no_other_file(shapes: Path) -> None:
    (shapes / "broken.py").write_text("raise RuntimeError")
    forget_modules()
    assert Slot("shapes", "line").config("line").kinds() == ("line",)
    assert "shapes.curve" not in sys.modules


def test_an_override_sets_one_value_and_keeps_the_rest(drawing: type[Config]) -> None:
    data = override(
        {"frame": {"width": 9}, "shape": {"kind": "circle", "turns": 3}}, ["shape.gain=0.5", "frame.width=10"]
    )
    assert drawing.read(data).plain()["shape"] == {"kind": "circle", "gain": 0.5, "turns": 3}
    assert data["frame"] == {"width": 10}


def test_overrides_do_not_touch_the_data_they_start_from() -> None:
    data = {"frame": {"width": 9}}
    override(data, ["frame.width=10"])
    assert data == {"frame": {"width": 9}}


def test_another_kind_keeps_the_settings_that_both_have(drawing: type[Config]) -> None:
    data = override({"shape": {"kind": "line", "length": 9, "gain": 0.25}}, ["shape.kind=spiral"])
    assert drawing.read(data).plain()["shape"] == {"kind": "spiral", "gain": 0.25, "turns": 2}


def test_a_new_setting_wins_over_an_inherited_one_in_any_order(drawing: type[Config]) -> None:
    data = {"shape": {"kind": "line", "gain": 0.25}}
    for changes in (["shape.kind=spiral", "shape.gain=3"], ["shape.gain=3", "shape.kind=spiral"]):
        assert drawing.read(override(data, changes)).plain()["shape"]["gain"] == 3.0


def test_a_shorthand_is_kept_when_more_is_said_about_it(drawing: type[Config]) -> None:
    data = override({"shape": 9}, ["shape.gain=0.5"])
    assert drawing.read(data).plain()["shape"]["length"] == 9
    assert drawing.read(override({"shape": 9}, ["shape.kind=line"])).plain()["shape"]["length"] == 9


def test_a_bare_kind_is_kept_when_more_is_said_about_it(drawing: type[Config]) -> None:
    assert drawing.read(override({"shape": "circle"}, ["shape.turns=5"])).plain()["shape"]["turns"] == 5


def test_a_setting_for_one_of_a_list_is_refused_but_a_kind_replaces_it(drawing: type[Config]) -> None:
    data = {"border": ["circle", "line"]}
    with pytest.raises(ConfigError, match=r"a list of 2; write the whole list, as in border=\[\.\.\.\]"):
        override(data, ["border.gain=2"])
    assert drawing.read(override(data, ["border.kind=spiral"])).plain()["border"]["kind"] == "spiral"
    assert len(drawing.read(override({}, ["border=[circle, line, circle]"])).plain()["border"]) == 3


def test_a_number_where_a_section_belongs_is_refused(drawing: type[Config]) -> None:
    for data in ({"frame": 5}, override({"frame": 5}, ["frame.width=9"])):
        assert "5" in refusal(drawing, data)


@pytest.mark.parametrize("assignment", ["frame.width", "=3", "frame..width=3", "frame.width=[1", "frame.=2"])
def test_what_is_no_override_is_refused_and_shown(assignment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override({}, [assignment])
    assert assignment in str(caught.value)


@given(st.integers(8, 10**6), st.floats(allow_nan=False, allow_infinity=False))
def test_an_override_is_read_as_yaml_of_the_same_value(width: int, gain: float) -> None:
    data = override({}, [f"frame.width={width}", f"shape.gain={gain!r}"])
    assert data["frame"]["width"] == width
    assert float(data["shape"]["gain"]) == gain


def test_many_errors_are_told_at_once_but_not_all(drawing: type[Config]) -> None:
    class Wide(Config):
        a: int
        b: int
        c: int
        d: int
        e: int
        f: int
        g: int
        h: int
        i: int
        j: int

    message = refusal(Wide, {})
    assert "a is missing" in message
    assert "... and 2 more" in message
    assert "\n" not in refusal(drawing, {"frame": {"width": "a\nb"}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1\n- 2\n", "holds list"),
        ("a: [1", "cannot be read as YAML"),
        ("", "holds NoneType"),
        ("!!python/object/apply:os.system [echo]", "cannot be read"),
    ],
)
def test_a_recipe_that_is_no_mapping_is_refused_with_its_path(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_recipe_of_wrong_bytes_or_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no recipe"):
        read_yaml(tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "bytes.yaml")


def references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"]] if "$ref" in schema else []
        return own + [found for value in schema.values() for found in references(value)]
    return [found for item in schema for found in references(item)] if isinstance(schema, list) else []


def test_the_schema_lists_every_kind_and_refers_to_nothing_missing(drawing: type[Config]) -> None:
    schema = drawing.model_json_schema()
    assert {reference.rpartition("/")[2] for reference in references(schema)} <= set(schema["$defs"])
    kinds, *_ = schema["properties"]["shape"]["anyOf"]
    assert kinds["enum"] == ["circle", "line", "spiral"]
    titles = {one.get("title") for one in schema["properties"]["shape"]["anyOf"]}
    assert {"line", "circle | spiral"} <= titles
    text = json.dumps(schema)
    assert "rounded" in text
    assert "turns" in text


def test_a_recipe_is_read_without_torch_or_numpy() -> None:
    code = "import fairway.core.config, sys; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_a_technique_outside_its_slots_folder_still_knows_its_kind(shapes: Path) -> None:  # noqa: ARG001
    line = importlib.import_module("shapes.line")
    assert line.Config().kind == "line"
    curve = importlib.import_module("shapes.curve")
    with pytest.raises(ValidationError, match="circle, spiral would work"):
        curve.Config(kind="line")


def test_ratios_are_text_and_not_numbers_to_base_sixty(tmp_path: Path) -> None:
    assert override({}, ["pattern=2:4", "count=24", "share=2.5"]) == {"pattern": "2:4", "count": 24, "share": 2.5}
    (tmp_path / "recipe.yaml").write_text("pattern: 4:8\nlist: [1:30.5, 7]\n")
    assert read_yaml(tmp_path / "recipe.yaml") == {"pattern": "4:8", "list": ["1:30.5", 7]}
