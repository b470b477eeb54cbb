"""Named randomness and the keyed permutation."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairway.core.seed import Permutation, derive, generator, numpy_generator


def test_a_derived_seed_is_the_same_on_every_machine_and_for_ever() -> None:
    assert derive(1, "init", "blocks.0") == 1535614218665647739
    assert derive(0, "data", 3) == 7348748612269275883


def test_a_derived_seed_does_not_depend_on_the_process() -> None:
    code = "from fairway.core.seed import derive; print(derive(5, 'order', 'epoch', 2))"
    answers = {
        subprocess.check_output([sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, text=True)
        for hash_seed in ("1", "2")
    }
    assert answers == {f"{derive(5, 'order', 'epoch', 2)}\n"}


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.text(max_size=8), st.text(max_size=8))
def test_seeds_of_two_purposes_differ(seed: int, step: int, first: str, second: str) -> None:
    assert 0 <= derive(seed, first, step) < 2**63
    if f"{first}" != f"{second}":
        assert derive(seed, first, step) != derive(seed, second, step)


def test_neighbouring_seeds_and_steps_never_share_a_stream() -> None:
    seeds = {derive(seed, "data", step) for seed in range(100) for step in range(100)}
    assert len(seeds) == 10_000


def test_a_generator_is_told_apart_by_its_name_alone() -> None:
    first = torch.rand(8, generator=generator(1, "dropout", 3))
    again = torch.rand(8, generator=generator(1, "dropout", 3))
    other = torch.rand(8, generator=generator(1, "dropout", 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_drawing_from_a_named_generator_leaves_the_global_one_alone() -> None:
    before_torch, before_numpy = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    torch.rand(8, generator=generator(1, "dropout"))
    numpy_generator(1, "order").random(8)
    assert torch.equal(before_torch, torch.get_rng_state())
    assert before_numpy == str(np.random.get_state())  # noqa: NPY002


def test_numpy_and_torch_streams_repeat() -> None:
    assert numpy_generator(1, "x").integers(1000, size=4).tolist() == [774, 516, 52, 18]
    assert np.array_equal(numpy_generator(2, "x").random(4), numpy_generator(2, "x").random(4))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097])
@pytest.mark.parametrize("key", [0, 1, 2**62 + 11])
def test_a_permutation_takes_every_value_once(size: int, key: int) -> None:
    image = Permutation(size, key)(np.arange(size))
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(size))


@given(st.integers(1, 10**12), st.integers(0, 2**63 - 1), st.lists(st.integers(0, 10**12), max_size=20))
def test_a_permutation_of_any_size_stays_in_range_and_never_collides(size: int, key: int, raw: list[int]) -> None:
    index = np.unique(np.array(raw, dtype=np.int64) % size)
    image = Permutation(size, key)(index)
    assert ((image >= 0) & (image < size)).all()
    assert len(np.unique(image)) == len(index)


def test_the_image_of_an_index_does_not_depend_on_what_else_is_asked() -> None:
    permutation = Permutation(1000, 3)
    whole = permutation(np.arange(1000))
    assert [int(permutation(np.array(i))) for i in range(0, 1000, 97)] == whole[::97].tolist()
    assert np.array_equal(permutation(np.arange(1000)[::-1].reshape(10, 100)), whole[::-1].reshape(10, 100))


def test_a_permutation_leaves_the_asked_indices_alone() -> None:
    index = np.arange(50)
    Permutation(50, 1)(index)
    assert np.array_equal(index, np.arange(50))


def test_two_keys_give_two_orders() -> None:
    images = {tuple(Permutation(100, key)(np.arange(100))) for key in range(200)}
    assert len(images) == 200


def test_a_permutation_shuffles_as_well_as_chance() -> None:
    size, keys = 200, 400
    images = np.stack([Permutation(size, key)(np.arange(size)) for key in range(keys)])
    neighbours = (np.abs(np.diff(images, axis=1)) == 1).mean() * size / 2
    correlation = np.array([np.corrcoef(image, np.arange(size))[0, 1] for image in images])
    counts = np.zeros((size, 10))
    for image in images:
        np.add.at(counts, (np.arange(size), image * 10 // size), 1)
    expected = keys / 10
    assert 0.93 < neighbours < 1.07
    assert 0.85 < correlation.std() * np.sqrt(size - 1) < 1.15
    assert 0.9 < ((counts - expected) ** 2 / expected).sum() / (size * 9) < 1.1
