"""A bit flipped, a page zeroed, a file cut, swapped or gone: refused before any tensor is used."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from artifact.forging import honest
from fairway.core import storage
from fairway.core.errors import DataError, StorageError
from fairway.data.batches import Batches
from fairway.data.manifest import Manifest
from survival.damage import KINDS, Damage, Verdicts, artifact_damage, checkpoint_damage, shard_damage
from survival.trainers import Zygote, latest, recipe, training

FAST, SLOW = 250, 10_000
TARGETS = ("checkpoint", "shards", "artifact")


@pytest.fixture(scope="module")
def run(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished run, with an artifact beside its checkpoint."""
    home = tmp_path_factory.mktemp("damaged")
    done = zygote.run(*training(recipe(home, steps=3), home / "run"), said=home / "said")
    assert done.code == 0, done.said
    (home / "run" / "model.fwy").write_bytes(honest())
    return home / "run"


def damage(target: str, run: Path, seed: int) -> Damage:
    if target == "artifact":
        return artifact_damage(run / "model.fwy", seed)
    if target == "shards":
        return shard_damage(run / "data", seed)
    found = latest(run)
    assert found is not None
    return checkpoint_damage(found.path, seed)


def judge(verdicts: Verdicts, trials: int, kinds: int) -> None:
    assert verdicts.trials == trials
    assert verdicts.refused == trials, verdicts.missed[:5]
    assert len(verdicts.by_kind) == kinds


@pytest.mark.parametrize("target", TARGETS)
def test_every_damage_is_refused(target: str, run: Path) -> None:
    """An artifact is one file, so nothing in it can be swapped."""
    judge(damage(target, run, 1).run(FAST), FAST, len(KINDS) - (target == "artifact"))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("target", TARGETS)
def test_ten_thousand_damages_are_refused(target: str, run: Path) -> None:
    judge(damage(target, run, 2).run(SLOW), SLOW, len(KINDS) - (target == "artifact"))


def test_a_reader_that_checks_sizes_alone_is_caught(tmp_path: Path) -> None:
    """The same trials find a planted fault: without its checksums a folder accepts what it must not."""
    for name in ("a", "b"):
        storage.write_bytes(tmp_path / name, hashlib.sha256(name.encode()).digest() * 300)
    storage.seal(tmp_path, {})
    files = [tmp_path / "a", tmp_path / "b"]
    careless = Damage(files, lambda: storage.unseal(tmp_path, check=False), StorageError, 3).run(200)
    assert {missed.partition(":")[0] for missed in careless.missed} == {"bit flipped", "page zeroed", "files swapped"}
    assert not Damage(files, lambda: storage.unseal(tmp_path), StorageError, 3).run(200).missed


def test_batches_stop_at_a_shard_that_changed_under_them(run: Path) -> None:
    """Even without its checksums a shard with an id outside the vocabulary reaches no batch."""
    manifest = Manifest.read(run / "data")
    shard = run / "data" / manifest.train.shards[0]
    good = shard.read_bytes()
    bad = bytearray(good)
    bad[40:42] = np.array([999], "<u2").tobytes()
    shard.write_bytes(bad)
    try:
        with pytest.raises(DataError, match="token 999"):
            Batches(Manifest.read(run / "data", check=False), 0)
    finally:
        shard.write_bytes(good)
