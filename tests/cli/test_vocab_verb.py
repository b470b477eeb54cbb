import json
from pathlib import Path

import pytest

WORDS = "the tide of the morning rises slowly and the lantern of the harbour falls "
SMALL = (
    "model.width=16",
    "model.depth=1",
    "model.mixer.heads=2",
    "model.context=16",
    "train.batch=4",
    "budget.steps=4",
)
COMMON = (*SMALL, "data.validation_fraction=0.2", "--bytes", "20kB", "--sizes", "257", "--sizes", "280")


@pytest.fixture(name="notes")
def _notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"{number} " + WORDS * 20)
    return folder


def test_the_verb_prints_a_table_writes_a_plot_and_names_a_size(fairway, notes: Path, tmp_path: Path):
    answer = fairway("vocab", *COMMON, "--text", notes, "--folder", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "Vocabularies within 20 kB and 4 steps of training" in answer.out
    assert "tokens/byte" in answer.out
    assert "Take data.tokenizer.vocabulary=" in answer.out
    assert (tmp_path / "out" / "vocabulary.svg").read_text().startswith("<svg xmlns")
    again = fairway("vocab", *COMMON, "--text", notes, "--folder", tmp_path / "out", "--json")
    found = json.loads(again.out.splitlines()[-1])
    assert [row["vocabulary"] for row in found["rows"]] == [257, 280]
    assert all(row["width"] == 16 for row in found["rows"])
    assert found["recommended"] in (257, 280)


def test_a_quantity_that_is_none_is_refused(fairway, notes: Path):
    assert "--bytes" in fairway.refused("vocab", "--text", notes, "--bytes", "many")
