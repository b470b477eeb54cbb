"""Shared runs of 50 bytes against a set of all of them."""

import random

import pytest

from fairway.data.overlap import SHINGLE_BYTES, sampled_runs, shared_runs


def texts(count: int, size: int, seed: int) -> list[bytes]:
    draw = random.Random(seed)
    return [draw.randbytes(size) for _ in range(count)]


def test_unrelated_texts_share_nothing_and_a_text_shares_all_with_itself() -> None:
    ours, theirs = texts(5, 20_000, 0), texts(5, 20_000, 1)
    assert shared_runs(theirs, ours) == 0.0
    assert shared_runs(ours, ours) == 1.0


def test_a_quoted_passage_is_measured_by_its_length_wherever_it_stands() -> None:
    (ours,), (theirs,) = texts(1, 400_000, 2), texts(1, 300_001, 3)
    quoted = ours[123_457:223_457]
    share = shared_runs([theirs + quoted + theirs[:1000]], [ours])
    exact = (len(quoted) - SHINGLE_BYTES + 1) / (len(ours) - SHINGLE_BYTES + 1)
    assert share == pytest.approx(exact, abs=0.02)


def test_the_sample_is_about_one_run_in_sixty_four_and_depends_on_content_alone() -> None:
    (text,) = texts(1, 600_000, 4)
    runs = sampled_runs(text)
    assert len(runs) == pytest.approx(600_000 / 64, rel=0.05)
    shifted = sampled_runs(b"x" + text)
    assert shifted[-len(runs) :].tolist() == runs.tolist()


@pytest.mark.parametrize("size", [0, 1, 49])
def test_texts_shorter_than_a_run_have_none(size: int) -> None:
    assert shared_runs([bytes(size)], [bytes(size)]) == 0.0
