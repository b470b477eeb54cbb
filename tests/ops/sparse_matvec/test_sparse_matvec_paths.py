"""The sparse product against its definition, on each instruction level, from the artifact's own representation."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fairway.artifact.packing import sparse
from fairway.artifact.packing.codebook import read_centroids, write_centroids
from fairway.core.native import LEVELS
from fairway.core.seed import generator
from fairway.ops.sparse_matvec import naive
from fairway.ops.sparse_matvec.native import packed, sparse_matvec
from laws.levels import at_level

SHAPES = [(1, 1), (3, 70), (16, 32), (17, 33), (40, 129), (100, 31), (65, 256)]


def drawn(rows: int, columns: int, shared: int, density: float, bits: int = 4) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Gaps, codes and table of a random matrix, its first two rows empty, as the artifact's packing holds them."""
    random = np.random.default_rng(rows * columns + shared)
    code = random.integers(1, shared + 1, (rows, columns)) * (random.random((rows, columns)) < density)
    code[: 2 if rows > 2 else 0] = 0
    exact = torch.randn(shared, generator=generator(shared, "centroids"))
    halves, exponent = write_centroids(exact)
    held = sparse.pack(code.astype(np.int32), halves, exponent, (rows, columns), bits)
    table = torch.cat((torch.zeros(1), read_centroids(halves, exponent)))
    dense = sparse.Sparse().unpack(held)
    assert torch.equal(dense, table[torch.from_numpy(code)])
    return held.arrays["gaps"], held.arrays["codes"], table


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("shared", "density"), [(15, 0.1), (31, 0.5), (32, 0.1), (300, 0.1), (4, 1.0)])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_product_is_that_of_the_definition(
    rows: int, columns: int, shared: int, density: float, level: str
) -> None:
    gaps, codes, table = drawn(rows, columns, shared, density)
    x = torch.randn(columns, generator=generator(columns, "x"))
    wanted = naive.sparse_matvec(torch.from_numpy(gaps), torch.from_numpy(codes), table, rows, x)
    with at_level(level):
        seen = sparse_matvec(packed(gaps, codes, table, rows, columns), x)
    assert seen.shape == (rows,)
    assert torch.allclose(seen.double(), wanted, rtol=1e-5, atol=1e-5)
    assert not seen[: 2 if rows > 2 else 0].any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shared", [15, 300])
def test_rows_that_hold_much_more_than_others_are_listed(shared: int, level: str) -> None:
    random = np.random.default_rng(0)
    code = random.integers(1, shared + 1, (70, 200)) * (random.random((70, 200)) < 0.1)
    code[17], code[69, 150:] = 1, shared
    places = np.flatnonzero(code)
    gaps, codes = np.diff(places, prepend=-1) - 1, code.reshape(-1)[places]
    table = torch.cat((torch.zeros(1), torch.randn(shared, generator=generator(shared, "centroids"))))
    x = torch.randn(200, generator=generator(0, "x"))
    wanted = naive.sparse_matvec(torch.from_numpy(gaps), torch.from_numpy(codes), table, 70, x)
    with at_level(level):
        matrix = packed(gaps, codes, table, 70, 200)
        assert len(matrix.rest)
        torch.testing.assert_close(sparse_matvec(matrix, x).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_a_matrix_without_entries_gives_zeros(level: str) -> None:
    none = np.zeros(0, np.int32)
    with at_level(level):
        assert not sparse_matvec(packed(none, none, torch.zeros(1), 20, 50), torch.ones(50)).any()


def test_an_entry_behind_the_end_is_refused() -> None:
    with pytest.raises(AssertionError, match="behind the end"):
        packed(np.array([12]), np.array([1]), torch.tensor([0.0, 1.0]), 3, 4)


@pytest.mark.parametrize("level", LEVELS)
def test_one_wrong_code_is_noticed(level: str) -> None:
    gaps, codes, table = drawn(40, 129, 15, 0.1)
    x = torch.randn(129, generator=generator(0, "x"))
    wanted = naive.sparse_matvec(torch.from_numpy(gaps), torch.from_numpy(codes), table, 40, x)
    codes[-1] = codes[-1] % 15 + 1
    with at_level(level):
        seen = sparse_matvec(packed(gaps, codes, table, 40, 129), x)
    assert not torch.allclose(seen.double(), wanted, rtol=1e-5, atol=1e-5)
