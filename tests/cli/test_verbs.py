import json
import shutil
from pathlib import Path

import pytest
import yaml

from fairway.cli.console.target import chosen_recipe
from fairway.core.storage import read_journal, read_json
from fairway.run import Recipe, load_recipe

ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes" / "tiny.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write below the current folder unless told otherwise."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def copied(tiny_run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "copied"))


def last_line(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def test_a_run_leaves_a_folder_that_describes_itself(tiny_run: Path):
    for name in (
        "recipe.yaml",
        "data/manifest.json",
        "metrics.jsonl",
        "model.fwy",
        "score.json",
        "ledger.json",
        "sample.txt",
    ):
        assert (tiny_run / name).stat().st_size > 0, name
    assert "<svg" in (tiny_run / "report.html").read_text()
    assert len(read_journal(tiny_run / "metrics.jsonl")) == 6


def test_the_same_command_again_ends_with_the_same_summary_and_one_json_line(fairway, copied: Path):
    before = read_json(copied / "summary.json")
    answer = fairway("run", copied, "--json")
    assert answer.code == 0
    summary = last_line(answer.out)
    wanted = {"run", "artifact", "bits_per_byte", "bytes", "bytes_cap", "seconds_train", "seconds_total"}
    assert wanted <= set(summary)
    assert summary["bits_per_byte"] == pytest.approx(before["bits_per_byte"], rel=1e-9)
    assert summary["bytes"] <= summary["bytes_cap"] == 12_000
    assert (copied / "sample.txt").read_text().splitlines()[0] in answer.out


def test_stages_can_be_called_one_by_one(fairway, tmp_path: Path):
    folder = tmp_path / "staged"
    overrides = [
        "model.width=32",
        "budget.bytes=12kB",
        "budget.steps=3",
        "data.max_bytes=200kB",
        "evaluate.max_bytes=4kB",
    ]
    prepared = fairway("prepare", TINY, *overrides, "--folder", folder, "--json")
    assert prepared.code == 0, prepared.err
    assert last_line(prepared.out)["train"]["bytes"] > 50_000
    trained = fairway("train", folder, "--json")
    assert (trained.code, last_line(trained.out)["steps"]) == (0, 3)
    compressed = fairway("compress", folder, "--json")
    assert compressed.code == 0, compressed.err
    assert last_line(compressed.out)["bytes"] == (folder / "model.fwy").stat().st_size <= 12_000
    own = (folder / "model.fwy").read_bytes()
    other = fairway(
        "compress", folder, "--bytes", "9kB", "compress.prune.kind=wanda", "compress.quantize.kind=rtn", "--json"
    )
    assert other.code == 0, other.err
    facts = last_line(other.out)
    assert 0.99 * 9_000 <= facts["bytes"] == (folder / "compressed.fwy").stat().st_size <= 9_000
    assert abs(facts["predicted_bytes"] - facts["bytes"]) < 90
    assert 0 < facts["bits_per_byte_before"] < facts["bits_per_byte_after"] + 1
    assert "wanda" in facts["plan"]
    assert (folder / "model.fwy").read_bytes() == own
    table = last_line(fairway("compress", folder, "--saliency", "--json").out)
    assert all(0 <= row["rises"][0] <= row["rises"][2] <= row["total"] for row in table["matrices"])
    assert table["matrices"][-1]["name"] == "all"
    assert "by size at 50 %" in fairway("compress", folder, "--saliency").out
    refused = fairway("compress", folder, "model.width=64")
    assert refused.code != 0
    assert "compress." in refused.err
    scored = fairway("evaluate", folder, "--json")
    assert scored.code == 0, scored.err
    assert 0 < last_line(scored.out)["bits_per_byte"] < 12


def test_a_text_is_scored_whole_and_by_its_raw_bytes(fairway, tiny_run: Path, tmp_path: Path):
    text = tmp_path / "text.py"
    text.write_bytes(b"import this\r\nx = '\xc3\xa4\xff'\n" * 30)
    answer = fairway("evaluate", tiny_run / "model.fwy", "--text", text, "--json")
    assert answer.code == 0, answer.err
    score = last_line(answer.out)
    assert score["bytes"] == text.stat().st_size
    assert score["documents"] == 1
    plain = last_line(fairway("evaluate", tiny_run, "mode=plain", "--text", text, "--json").out)
    assert plain["mode"] == "plain"
    assert plain["bits_per_byte"] != score["bits_per_byte"]


def test_greedy_text_is_the_same_every_time_and_streams_after_the_prompt(fairway, tiny_run: Path):
    first = fairway("generate", tiny_run, "--prompt", "import ", "--tokens", "12", "--temperature", "0")
    again = fairway("generate", tiny_run, "--prompt", "import ", "--tokens", "12", "--temperature", "0", "--json")
    assert first.code == 0
    assert first.out.startswith("import ")
    assert first.out == "import " + last_line(again.out)["text"] + "\n"


def test_stop_strings_end_the_text(fairway, tiny_run: Path):
    whole = last_line(fairway("generate", tiny_run, "--tokens", "30", "--seed", "3", "--json").out)["text"]
    stop = whole[8:10]
    cut = last_line(fairway("generate", tiny_run, "--tokens", "30", "--seed", "3", "--stop", stop, "--json").out)[
        "text"
    ]
    assert cut == whole[: whole.index(stop)]


def test_inspect_accounts_for_every_byte(fairway, tiny_run: Path):
    found = last_line(fairway("inspect", tiny_run, "--json").out)
    assert found["bytes"] == (tiny_run / "model.fwy").stat().st_size
    assert sum(found["groups"].values()) == pytest.approx(found["bytes"])
    shown = fairway("inspect", tiny_run / "model.fwy").out
    assert all(tensor["name"] in shown for tensor in found["tensors"])
    assert "width: 32" in shown


def test_the_plan_predicts_the_run(fairway, tiny_run: Path):
    plan = last_line(fairway("plan", tiny_run / "recipe.yaml", "--json").out)
    summary = read_json(tiny_run / "summary.json")
    assert plan["total_parameters"] == sum(plan["parameters"].values()) == summary["parameters"]
    assert (plan["steps"], plan["tokens"]) == (summary["steps"], summary["tokens"])
    assert plan["artifact_bytes"] == pytest.approx(summary["bytes"], rel=0.02)
    assert plan["binding"] == "steps"
    assert "bits a weight" in fairway("plan", tiny_run / "recipe.yaml").out


def test_doctor_measures_and_tells_what_is_installed(fairway):
    found = last_line(fairway("doctor", "--seconds", "0.01", "--json").out)
    assert found["measured"]["fp32_flops"] > 1e8
    assert found["measured"]["copy_bytes_per_second"] > 1e7
    assert found["versions"]["torch"]
    assert found["room"]["free_disk_bytes"] > 0


def test_recipes_of_the_repository_are_valid_and_named_by_their_files():
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert {"default.yaml", "tiny.yaml"} <= {path.name for path in recipes}
    for path in recipes:
        assert load_recipe(path).name == path.stem


def test_a_first_argument_that_is_an_override_needs_no_recipe():
    assert chosen_recipe("model.width=96", ["budget.steps=3"]).model.width == 96


def test_the_stored_recipe_gives_the_same_run(tiny_run: Path):
    stored = load_recipe(tiny_run / "recipe.yaml")
    assert stored.fingerprint() == read_json(tiny_run / "summary.json")["fingerprint"]
    assert Recipe.read(yaml.safe_load(yaml.safe_dump(stored.plain()))) == stored
