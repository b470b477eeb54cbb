"""Hostile files find no crash, no hang, no bomb, and no error but the one that names them."""

import os
import time
from pathlib import Path

import pytest

from fairway.artifact.format import read_bytes, restore
from fairway.core.errors import ArtifactError, DataError
from fairway.data.shards import open_shard
from fuzz.fuzzing import ROOM, SLOWEST, TARGETS, fuzz
from fuzz.mutators import SHARD_VOCABULARY, artifact_input, described, honest, shard_input

FAST = 10_000
SLOW = int(os.environ.get("FAIRWAY_FUZZ_INPUTS", "2500000"))
"""Inputs of each target in the slow tier."""
REGRESSIONS = sorted((Path(__file__).parent / "regressions").iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_ten_thousand_hostile_files_find_nothing(target: str, tmp_path: Path) -> None:
    campaign = fuzz(target, FAST, seed=1, folder=tmp_path)
    assert not campaign.findings, campaign.findings
    assert campaign.inputs == FAST
    assert 0 < campaign.accepted < FAST / 2, "a fuzzer whose files are all refused at the door, or let in, tests little"
    assert campaign.slowest < SLOWEST
    assert campaign.memory < ROOM / 4


@pytest.mark.slow
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("target", TARGETS)
def test_millions_of_hostile_files_find_nothing(target: str, tmp_path: Path) -> None:
    campaign = fuzz(target, SLOW, seed=2, folder=tmp_path, workers=min(2, os.cpu_count() or 1))
    assert campaign.inputs == SLOW
    assert not campaign.findings, campaign.findings


@pytest.mark.parametrize("make", [artifact_input, shard_input])
def test_an_input_can_be_made_again_from_its_number(make: object) -> None:
    assert callable(make)
    found = [make(7, index) for index in range(60)]
    assert found == [make(7, index) for index in range(60)]
    assert found != [make(8, index) for index in range(60)]
    assert len({data for _, data in found}) > 50


def test_the_honest_files_are_read_down_to_the_last_tensor() -> None:
    for data in honest():
        assert len(restore(read_bytes(data))) == 8


def test_planted_faults_of_every_sort_are_found(tmp_path: Path) -> None:
    """An error of another type, a bomb and a slow input each end as a finding that names the input."""
    found = fuzz("planted", 40, seed=1, folder=tmp_path).findings
    assert [finding.split("input ")[1].split(":")[0] for finding in found] == [f"{n} (planted)" for n in (25, 30, 35)]
    assert "IndexError" in found[0]
    assert "MemoryError" in found[1]
    assert len(list(tmp_path.glob("finding-*.planted"))) == 3


@pytest.mark.slow
def test_an_input_that_ends_the_process_is_named(tmp_path: Path) -> None:
    campaign = fuzz("planted", 1_001, seed=1, folder=tmp_path)
    assert "input 1000 ended the process with -11" in campaign.findings[0]


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.name)
def test_files_that_once_did_harm_are_refused(path: Path) -> None:
    assert path.stat().st_size < 8192
    start = time.process_time()
    if path.suffix == ".artifact":
        with pytest.raises(ArtifactError):
            restore(read_bytes(path.read_bytes()))
    else:
        assert path.suffix == ".shard", described(path.read_bytes())
        with pytest.raises(DataError):
            open_shard(path, SHARD_VOCABULARY)
    assert time.process_time() - start < 0.1
