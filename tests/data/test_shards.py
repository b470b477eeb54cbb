"""Shards give back what was written, and anything else ends in an error that names the file."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairway.core.errors import DataError
from fairway.data.shards import TokenStream, open_shard, write_shard, write_shards

TWO = np.dtype("<u2")
FOUR = np.dtype("<u4")
HEADER = struct.Struct("<8sIIQQ")


def written(folder: Path, vocabulary: int = 1000, dtype: np.dtype = TWO) -> tuple[Path, np.ndarray]:
    tokens = np.arange(500).astype(dtype)
    write_shard(folder / "a.tokens", [tokens[:100], tokens[100:]], dtype, vocabulary)
    return folder / "a.tokens", tokens


@pytest.mark.parametrize(("dtype", "vocabulary"), [(TWO, 1000), (TWO, 65_536), (FOUR, 65_537)])
def test_tokens_come_back(dtype: np.dtype, vocabulary: int, tmp_path: Path) -> None:
    path, tokens = written(tmp_path, vocabulary, dtype)
    assert open_shard(path, vocabulary).tolist() == tokens.tolist()
    assert path.stat().st_size == 32 + tokens.nbytes


def test_an_empty_shard_comes_back(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", [], TWO, 300)
    assert len(open_shard(tmp_path / "a", 300)) == 0


def test_a_token_outside_the_vocabulary_is_named_with_its_place(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    with pytest.raises(DataError, match="is for a vocabulary of 1000"):
        open_shard(path, 400)
    data = bytearray(path.read_bytes())
    data[32 + 2 * 77 : 34 + 2 * 77] = (1000).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tokens holds token 1000 at 77"):
        open_shard(path, 1000)


@pytest.mark.parametrize(
    ("itemsize", "count", "version", "magic"),
    [
        (2, 499, 1, b"FWYSHARD"),
        (2, 1 << 63, 1, b"FWYSHARD"),
        (4, 500, 1, b"FWYSHARD"),
        (3, 500, 1, b"FWYSHARD"),
        (2, 500, 2, b"FWYSHARD"),
        (2, 500, 1, b"FWYSHARE"),
    ],
)
def test_a_header_that_lies_is_refused(itemsize: int, count: int, version: int, magic: bytes, tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    path.write_bytes(HEADER.pack(magic, version, itemsize, count, 1000) + path.read_bytes()[32:])
    with pytest.raises(DataError, match=r"a\.tokens"):
        open_shard(path, 1000)


@pytest.mark.parametrize("size", [0, 5, 31, 32, 33, 1031])
def test_a_shard_cut_short_is_refused(size: int, tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"a\.tokens"):
        open_shard(path, 1000)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.tokens"):
        open_shard(tmp_path / "gone.tokens", 1000)


@given(st.lists(st.integers(0, 9), max_size=8), st.randoms(use_true_random=False))
def test_a_stream_reads_across_shards_like_one_vector(sizes: list[int], draw: random.Random) -> None:
    whole = np.arange(sum(sizes))
    stream = TokenStream(np.split(whole, np.cumsum(sizes)[:-1]) if sizes else [])
    assert len(stream) == len(whole)
    start = draw.randrange(len(whole) + 1)
    out = np.full(draw.randrange(len(whole) - start + 1), -1)
    stream.read(start, out)
    assert out.tolist() == whole[start : start + len(out)].tolist()


def test_a_long_stream_is_cut_into_shards_without_losing_a_token(tmp_path: Path) -> None:
    parts = [np.full(n, n, TWO) for n in (3, 40, 1, 60, 7, 50)]
    names = write_shards(tmp_path, "train", iter(parts), TWO, 100, size=50)
    assert names == ["train-00000.tokens", "train-00001.tokens"]
    found = np.concatenate([open_shard(tmp_path / name, 100) for name in names])
    assert found.tolist() == np.concatenate(parts).tolist()
