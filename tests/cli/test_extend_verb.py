import json
from pathlib import Path

from fairway.evaluate.by_position import EXTENSIONS
from fairway.serve.load import load


def test_extending_a_run_writes_a_longer_artifact_a_plot_and_the_curves(fairway, tiny_run: Path, tmp_path: Path):
    out = tmp_path / "long.fwy"
    arguments = ("extend", tiny_run, "--context", 128, "--kind", "ntk", "-o", out, "--sample", "6kB", "--json")
    answer = fairway(*arguments)
    assert answer.code == 0, answer.err
    found = json.loads(answer.out.splitlines()[-1])
    assert [curve["name"] for curve in found["curves"]] == list(EXTENSIONS)
    assert max(found["curves"][0]["position"]) > 120
    assert found["bytes"] == out.stat().st_size
    drawing = Path(found["plot"]).read_text(encoding="utf-8")
    assert drawing.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert drawing.count('class="line ') == len(EXTENSIONS)
    assert load(out).context == 128


def test_extending_a_file_alone_writes_it_beside_and_measures_on_text_that_is_named(fairway, tiny_run: Path, tmp_path):
    alone = tmp_path / "alone.fwy"
    alone.write_bytes((tiny_run / "model.fwy").read_bytes())
    answer = fairway("extend", alone, "--context", 96)
    assert answer.code == 0, answer.err
    assert load(tmp_path / "alone-96.fwy").network.config.position.kind == "yarn"
    assert not list(tmp_path.glob("*.svg"))
    text = tmp_path / "text.txt"
    text.write_bytes(b"def area(width, height): return width * height\n" * 40)
    table = fairway("extend", alone, "--context", 96, "--text", text)
    assert table.code == 0, table.err
    assert all(kind in table.out for kind in EXTENSIONS)
    assert "beyond" in table.out


def test_what_cannot_be_extended_is_said_before_anything_is_written(fairway, tiny_run: Path, tmp_path: Path):
    out = tmp_path / "long.fwy"
    assert "longer context" in fairway.refused("extend", tiny_run, "--context", 16, "-o", out)
    assert "--sample" in fairway.refused("extend", tiny_run, "--context", 128, "-o", out, "--sample", "many")
    assert not out.exists()
