"""The same rows in the same order, however they are shared out."""

from pathlib import Path

import pytest
from torch import Tensor

from fairway.core.log import silent
from fairway.data.batches import Batch, Batches
from fairway.model.lm import Output
from fairway.run import Run, load_recipe
from fairway.train.parts import Hook, Trainee
from survival.trainers import recipe

STEPS, ROWS, CONTEXT = 6, 12, 16


class Seen(Hook):
    """Writes down every row that the model is trained on."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def loss(self, loop: Trainee, batch: Batch, output: Output) -> dict[str, Tensor]:  # noqa: ARG002
        self.rows += batch.tokens_BT.tolist()
        return {"seen": output.hidden_BTD.sum() * 0.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("order")
    recipe(folder, steps=STEPS)
    return folder


@pytest.fixture(scope="module")
def wanted(home: Path) -> list[list[int]]:
    """The rows of whole batches on one rank."""
    return rows(home, "whole")


def rows(home: Path, name: str, *assignments: str) -> list[list[int]]:
    settings = [f"train.batch={ROWS}", f"model.context={CONTEXT}", *assignments]
    run = Run.create(load_recipe(home / "recipe.yaml", settings), home / name)
    seen = Seen()
    run.training(run.prepare(silent), hooks=(seen,)).run(silent)
    return seen.rows


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 12])
def test_any_micro_batch_trains_on_the_same_list_of_rows(micro_batch: int, home: Path, wanted: list[list[int]]) -> None:
    assert len(wanted) == STEPS * ROWS
    assert rows(home, f"micro-{micro_batch}", f"train.micro_batch={micro_batch}") == wanted


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_any_number_of_ranks_reads_the_rows_that_one_trains_on(world: int, home: Path, wanted: list[list[int]]) -> None:
    run = Run.open(home / "whole")
    batches = Batches(run.prepare(silent), run.recipe.seed)
    shared = [batches.at(step, ROWS, CONTEXT, rank, world).tokens_BT for step in range(STEPS) for rank in range(world)]
    assert [row for part in shared for row in part.tolist()] == wanted


def test_another_seed_trains_on_another_list_of_rows(home: Path, wanted: list[list[int]]) -> None:
    assert rows(home, "other", "seed=5") != wanted
