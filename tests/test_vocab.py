"""The search for a vocabulary: what it counts, what it cuts, what it measures, what it recommends."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fairway.core.config import override
from fairway.core.errors import BudgetError, ConfigError
from fairway.core.log import Event, silent
from fairway.core.seed import numpy_generator
from fairway.core.storage import MANIFEST
from fairway.data.manifest import Manifest, prepare
from fairway.run import Recipe
from fairway.vocab import Row, Search, plot, predicted_bits, search

WORDS = ("harbour", "lantern", "tide", "morning", "stone", "salt", "and", "the", "of", "rises", "falls", "slowly")


@pytest.fixture(scope="module", name="text")
def _text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    random = numpy_generator(0, "words")
    for index in range(60):
        (folder / f"{index}.txt").write_text(f"{index}: " + " ".join(random.choice(WORDS, 300)))
    return folder


def recipe(text: Path, *changes: str) -> Recipe:
    base = [
        "data.source.kind=text",
        f"data.source.path={text}",
        "data.validation_fraction=0.2",
        "model.width=16",
        "model.depth=1",
        "model.mixer.heads=2",
        "model.context=16",
        "train.batch=4",
        "train.precision=fp32",
        "budget.bytes=20kB",
        "budget.steps=6",
        "evaluate.max_bytes=3kB",
        "sample.tokens=4",
    ]
    return Recipe.read(override({}, [*base, *changes]))


FIXED = ("model.width", "model.depth.layers")


def home(folder: Path, vocabulary: int) -> Path:
    (run,) = folder.glob(f"{vocabulary}-*")
    return run


@pytest.fixture(scope="module", name="found")
def _found(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, Path]:
    folder = tmp_path_factory.mktemp("search")
    return search(recipe(text), folder, silent, (257, 270, 300, 9000), measure=True, fixed=FIXED), folder


def test_larger_vocabularies_need_fewer_tokens_and_more_table(found: tuple[Search, Path]) -> None:
    rows = found[0].rows
    assert [row.vocabulary for row in rows] == [257, 270, 300]
    assert rows[0].tokens_per_byte == pytest.approx(1.0, abs=0.002)
    assert rows[0].tokens_per_byte > rows[1].tokens_per_byte > rows[2].tokens_per_byte
    assert [row.embedding_parameters for row in rows] == [16 * row.vocabulary for row in rows]
    for row in rows:
        bits = 8 * row.embedding_bytes / row.embedding_parameters
        assert 1.0 < bits < 10.0
        assert row.artifact_bytes <= 20_000
        assert row.bytes_seen * row.tokens_per_byte == pytest.approx(6 * 4 * 16)


def test_each_size_is_measured_by_an_artifact_within_the_cap(found: tuple[Search, Path]) -> None:
    rows, folder = found[0].rows, found[1]
    for row in rows:
        assert row.measured is not None
        assert 0 < row.measured < 9
        assert (home(folder, row.vocabulary) / "model.fwy").stat().st_size <= 20_000
    assert found[0].best.measured == min(row.measured or 99 for row in rows)


def test_a_size_that_the_text_has_no_pairs_for_is_left_out_with_the_reason(found: tuple[Search, Path]) -> None:
    assert "ids only" in found[0].left_out[9000]


def test_what_is_cut_is_byte_for_byte_what_training_at_that_size_prepares(
    found: tuple[Search, Path], text: Path, tmp_path: Path
) -> None:
    cut = home(found[1], 300) / "data"
    trained = prepare(recipe(text, "data.tokenizer.vocabulary=300").data, tmp_path / "data").folder
    assert Manifest.read(cut).fingerprint == Manifest.read(trained).fingerprint
    assert (cut / MANIFEST).read_bytes() == (trained / MANIFEST).read_bytes()


def test_the_plot_is_a_whole_drawing_of_both_curves(found: tuple[Search, Path]) -> None:
    drawing = plot(found[0])
    root = ET.fromstring(drawing)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//{http://www.w3.org/2000/svg}circle")) == 6
    assert "measured" in drawing


def test_predictions_fall_with_parameters_and_text_and_meet_runs_that_were_made() -> None:
    assert predicted_bits(2e6, 1024, 1e7) < predicted_bits(1e6, 1024, 1e7)
    assert predicted_bits(1e6, 1024, 2e7) < predicted_bits(1e6, 1024, 1e7)
    for body, vocabulary, seen, measured in (
        (221_708, 512, 391_651, 2.691),
        (885_772, 1024, 467_886, 2.436),
        (221_708, 4096, 1_573_563, 2.015),
    ):
        assert predicted_bits(body, vocabulary, seen) == pytest.approx(measured, abs=0.03)


def row(vocabulary: int, predicted: float, measured: float | None = None) -> Row:
    return Row(vocabulary, 1.0, 1, 1, 1, 1, 1, 1, 1, 1.0, 1.0, 1.0, predicted, measured)


def test_the_best_is_measured_where_anything_is() -> None:
    assert Search((row(257, 2.0), row(512, 1.9)), {}).best.vocabulary == 512
    assert Search((row(257, 2.0, 1.7), row(512, 1.9, 1.8)), {}).best.vocabulary == 257


def test_a_size_beyond_those_that_predictions_were_tried_on_is_called_hopeful_until_it_is_measured() -> None:
    small = row(4096, 2.0)
    assert Search((small, row(8192, 1.9)), {}).hopeful
    assert not Search((small, row(8192, 2.1)), {}).hopeful
    assert not Search((row(4096, 2.0, 2.0), row(8192, 1.9, 1.8)), {}).hopeful


def test_it_says_how_long_it_takes_and_a_stopped_search_goes_on_where_it_was(text: Path, tmp_path: Path) -> None:
    def stop_at_280(event: Event) -> None:
        if event.phase == "280 ids: quantise":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(recipe(text), tmp_path, stop_at_280, (257, 280), measure=True, fixed=FIXED)
    scores = [home(tmp_path, size) / "score.json" for size in (257, 280)]
    first = scores[0].stat().st_mtime_ns
    assert not scores[1].exists()
    events: list[Event] = []
    found = search(recipe(text), tmp_path, events.append, (257, 280), measure=True, fixed=FIXED)
    assert all(row.measured is not None for row in found.rows)
    assert scores[0].stat().st_mtime_ns == first
    messages = [event.message for event in events if event.phase == "measure"]
    assert messages[0].startswith("2 sizes to train: ")
    assert "1 of 2 sizes are done, about" in messages[1]
    begun = {event.phase for event in events if event.fraction != 1.0}
    assert not begun & {"257 ids: train", "280 ids: train"}


def test_another_setting_does_not_meet_the_runs_of_the_first(text: Path, tmp_path: Path) -> None:
    for steps in (3, 4):
        search(recipe(text, f"budget.steps={steps}"), tmp_path, silent, (257,), measure=True, fixed=FIXED)
    assert len(list(tmp_path.glob("257-*"))) == 2


def test_a_tokenizer_without_merges_and_a_budget_for_nothing_are_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bpe would work"):
        search(recipe(text, "data.tokenizer=byte"), tmp_path, silent)
    with pytest.raises(BudgetError, match="No vocabulary fits"):
        search(recipe(text, "budget.bytes=1kB"), tmp_path, silent, (257, 300), fixed=FIXED)
