"""A training process may be killed at any instant: nothing is lost but the steps since the last checkpoint."""

import signal
from pathlib import Path

import pytest

from fairway.core.storage import LOCK, read_journal
from survival.trainers import Killing, Toll, Zygote, outcome, recipe, training, unloadable, wait_until

FAST_KILLS, SLOW_KILLS = 20, 300
FAST_STEPS = 24


def judge(toll: Toll, kills: int) -> None:
    assert toll.kills >= kills
    assert (toll.unloadable, toll.refused, toll.differing) == (0, 0, 0), toll
    assert toll.runs > 0
    assert toll.by_time + sum(toll.at_points.values()) == toll.kills


def test_twenty_kills_lose_nothing_and_the_end_is_bit_equal(zygote: Zygote, tmp_path: Path) -> None:
    killing = Killing(zygote, tmp_path, seed=1, steps=FAST_STEPS)
    judge(killing.run(FAST_KILLS), FAST_KILLS)
    digest, log = killing.wanted
    assert [row["step"] for row in log] == list(range(1, FAST_STEPS + 1))
    assert len(digest) == 64


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_three_hundred_kills_lose_nothing_and_the_end_is_bit_equal(zygote: Zygote, tmp_path: Path) -> None:
    judge(Killing(zygote, tmp_path, seed=2).run(SLOW_KILLS), SLOW_KILLS)


def test_a_changed_weight_or_a_missing_step_would_be_noticed(zygote: Zygote, tmp_path: Path) -> None:
    """The comparison itself: another seed gives another digest, and a line less another log."""
    path = recipe(tmp_path, steps=4)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = zygote.run(*training(path, tmp_path / name, f"seed={seed}"), said=tmp_path / "said")
        assert done.code == 0, done.said
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    assert outcome(tmp_path / "a")[0] != outcome(tmp_path / "c")[0]
    log = tmp_path / "b" / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    assert outcome(tmp_path / "a") != outcome(tmp_path / "b")
    model = next((tmp_path / "b" / "checkpoints").glob("*4/model.safetensors"))
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    assert unloadable(tmp_path / "b") == [model.parent]


def test_killed_twice_while_resuming_and_asked_to_stop_it_still_ends_bit_equal(zygote: Zygote, tmp_path: Path) -> None:
    path, said = recipe(tmp_path, steps=FAST_STEPS), tmp_path / "said"
    trace = tmp_path / "trace"
    assert zygote.run(*training(path, tmp_path / "unbroken"), said=said).code == 0
    arguments = training(path, tmp_path / "broken")
    assert zygote.run(*arguments, said=said, die_at=220).code == -signal.SIGKILL
    steps = len(read_journal(tmp_path / "broken" / "metrics.jsonl"))
    assert 0 < steps < FAST_STEPS
    for point in (0, 2):
        trace.unlink(missing_ok=True)
        assert zygote.run(*arguments, said=said, die_at=point, trace=str(trace)).code == -signal.SIGKILL
        assert "loop.stepped" not in trace.read_text(), "it was to die before its first step"
        assert not unloadable(tmp_path / "broken")
    trainer = zygote.start(*arguments, said=said)
    wait_until(lambda: len(read_journal(tmp_path / "broken" / "metrics.jsonl")) > steps)
    trainer.signal(signal.SIGTERM)
    stopped = trainer.wait()
    assert stopped.code == 130, stopped.said
    assert "run the same command again" in stopped.said
    assert zygote.run(*arguments, said=said).code == 0
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "unbroken")


def test_a_second_trainer_is_refused_and_a_dead_ones_lock_is_free_again(zygote: Zygote, tmp_path: Path) -> None:
    path, said, folder = recipe(tmp_path, steps=100_000), tmp_path / "said", tmp_path / "run"
    first = zygote.start(*training(path, folder), said=said)
    wait_until(lambda: len(read_journal(folder / "metrics.jsonl")) > 2)
    second = zygote.run(*training(path, folder), said=tmp_path / "second")
    assert second.code == 2
    assert "Another process is using" in second.said
    assert "Traceback" not in second.said
    first.signal(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    assert (folder / LOCK).exists()
    (folder / f".stray.{first.pid}.tmp").write_bytes(b"half")
    third = zygote.start("train", folder, said=tmp_path / "third")
    heard = tmp_path / "third"
    wait_until(lambda: heard.exists() and b"Going on from step" in heard.read_bytes())
    assert not (folder / f".stray.{first.pid}.tmp").exists()
    third.signal(signal.SIGKILL)
    third.wait()


@pytest.mark.parametrize("room", [1_500, 3_000, 9_000])
def test_a_full_disk_leaves_the_last_checkpoint_and_one_message(zygote: Zygote, tmp_path: Path, room: int) -> None:
    path, said, folder = recipe(tmp_path, steps=FAST_STEPS), tmp_path / "said", tmp_path / "run"
    assert zygote.run(*training(path, folder), said=said, die_at=170).code == -signal.SIGKILL
    before = read_journal(folder / "metrics.jsonl")
    full = zygote.run(*training(path, folder), said=tmp_path / "full", largest_file=room)
    assert full.code == 2, full.said
    message = full.said.splitlines()[-1]
    assert "could not be written: no room" in message
    assert "intact" in message
    assert "Traceback" not in full.said
    assert not unloadable(folder)
    assert not list(folder.rglob("*.tmp"))
    assert len(read_journal(folder / "metrics.jsonl")) >= len(before) - 1
    assert zygote.run(*training(path, folder), said=said).code == 0
    assert [row["step"] for row in read_journal(folder / "metrics.jsonl")] == list(range(1, FAST_STEPS + 1))
