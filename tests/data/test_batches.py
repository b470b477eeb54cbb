"""Batches are a pure function of the step: any order, any world size, every token in its turn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairway.core.errors import ConfigError, DataError
from fairway.data.batches import Batches
from fairway.data.manifest import DataConfig, prepare
from fairway.data.shards import TokenStream


class Counting:
    """Stands in for a manifest whose tokens are 0, 1, 2, ... so that a token tells its own place."""

    def __init__(self, count: int, boundary: int = -1) -> None:
        self.count = count
        self.tokenizer = self
        self.boundary = boundary

    def tokens(self, split: str) -> TokenStream:
        assert split == "train"
        return TokenStream(np.array_split(np.arange(self.count, dtype=np.uint32), 3))


def batches(count: int, seed: int = 0, boundary: int = -1) -> Batches:
    manifest: Any = Counting(count, boundary)
    return Batches(manifest, seed)


def test_every_row_is_a_run_of_consecutive_tokens() -> None:
    tokens = batches(5000).at(3, 8, 16).tokens_BT
    assert tokens.shape == (8, 17)
    assert tokens.dtype == torch.int64
    assert (tokens - tokens[:, :1] == torch.arange(17)).all()


def test_an_epoch_visits_every_window_once_and_repeats_no_target() -> None:
    made = batches(16 * 64 + 5)
    windows = made._windows(16)
    rows = torch.cat([made.at(step, 1, 16).tokens_BT for step in range(windows)])
    starts = rows[:, 0].tolist()
    assert len(set(starts)) == windows == 63
    assert {start % 16 for start in starts} == {starts[0] % 16}
    targets = rows[:, 1:].flatten().tolist()
    assert len(set(targets)) == len(targets)
    assert max(targets) - min(targets) + 1 == len(targets)
    assert starts != sorted(starts)


def test_epochs_differ_in_offset_and_order() -> None:
    made = batches(16 * 64 + 5)
    first, second = (
        [made.at(epoch * 63 + step, 1, 16).tokens_BT[0, 0].item() for step in range(63)] for epoch in (0, 1)
    )
    assert first != second
    assert len({made.at(epoch * 63, 1, 16).tokens_BT[0, 0].item() % 16 for epoch in range(20)}) > 5
    assert [made.epoch(step, 1, 16) for step in (0, 62, 63, 126)] == [0, 0, 1, 2]


def test_no_offset_reads_past_the_end_or_leaves_the_tail_out() -> None:
    made = batches(16 * 9 + 3)
    seen = {token for step in range(400) for token in made.at(step, 8, 16).tokens_BT.flatten().tolist()}
    assert seen == set(range(16 * 9 + 3))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_any_number_of_ranks_reads_the_same_list_of_rows(world: int) -> None:
    made = batches(3000)
    for step in (0, 1, 7, 500):
        whole = made.at(step, 12, 16)
        parts = [made.at(step, 12, 16, rank, world) for rank in range(world)]
        assert torch.cat([part.tokens_BT for part in parts]).tolist() == whole.tokens_BT.tolist()
        assert torch.cat([part.starts_BT for part in parts]).tolist() == whole.starts_BT.tolist()


def test_going_on_at_any_step_gives_the_list_that_an_unbroken_run_gives() -> None:
    unbroken = [batches(3000).at(step, 4, 16).tokens_BT.tolist() for step in range(120)]
    for step in np.random.default_rng(0).permutation(120).tolist():
        assert batches(3000).at(step, 4, 16).tokens_BT.tolist() == unbroken[step]


def test_another_seed_gives_another_order() -> None:
    assert batches(3000, 0).at(0, 8, 16).tokens_BT.tolist() != batches(3000, 1).at(0, 8, 16).tokens_BT.tolist()


def test_starts_mark_the_boundaries() -> None:
    batch = batches(100, boundary=50).at(0, 4, 16)
    assert (batch.starts_BT == (batch.tokens_BT == 50)).all()
    found = [batches(100, boundary=50).at(step, 4, 16).starts_BT.sum().item() for step in range(8)]
    assert sum(found) > 0


@pytest.mark.parametrize("count", [17, 18, 31, 32, 33])
def test_a_text_of_hardly_one_window_still_works(count: int) -> None:
    made = batches(count)
    rows = [made.at(step, 2, 16).tokens_BT for step in range(200)]
    assert all((row - row[:, :1] == torch.arange(17)).all() for row in rows)
    assert {row[0, 0].item() for row in rows} >= set(range(count - 16))


def test_a_text_shorter_than_one_window_is_refused() -> None:
    with pytest.raises(DataError, match="16 tokens; a context of 16 needs 17"):
        batches(16).at(0, 1, 16)


def test_rows_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ConfigError, match="a multiple of 3"):
        batches(1000).at(0, 8, 16, 0, 3)


def test_batches_of_a_prepared_folder_are_the_text(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(30):
        (tmp_path / "text" / f"{number}.txt").write_text(f"document {number} " * 40)
    source = {"kind": "text", "path": str(tmp_path / "text")}
    manifest = prepare(DataConfig.read({"source": source, "tokenizer": {"kind": "byte"}}), tmp_path / "data")
    batch = Batches(manifest, 0).at(0, 4, 64)
    for row, starts in zip(batch.tokens_BT, batch.starts_BT, strict=True):
        text = manifest.tokenizer.decode(row.numpy())
        assert b"document" in text
        assert len(text) == 65 - starts.sum().item()
