"""Text files of any content are read byte for byte, long ones in documents of bounded size."""

import gzip
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairway.core.errors import ConfigError, DataError
from fairway.data.source.text import Config


def documents(*paths: Path | str, **settings: object) -> list[bytes]:
    config = Config.read({"path": [str(path) for path in paths], **settings})
    return [document.data for document in config.documents()]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"\0",
        b"\xef\xbb\xbfmark",
        b"a\r\nb\rc",
        b"\xff\xfe\xc0\xaf",
        "\U0010ffff".encode(),
        b"\xed\xa0\x80",
    ],
)
def test_a_small_file_is_one_document_of_its_bytes(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    assert documents(tmp_path / "a") == [data]


@given(
    data=st.lists(st.sampled_from([b"\n", b"ab", b"cdefgh", b"\xff"]), max_size=80).map(b"".join),
    size=st.integers(1, 40),
)
def test_a_long_file_is_cut_behind_line_ends_and_loses_nothing(
    data: bytes, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("text") / "a"
    path.write_bytes(data)
    found = documents(path, document_bytes=size)
    assert b"".join(found) == data
    assert all(len(part) <= size for part in found)
    for part, after in pairwise(found):
        assert part.endswith(b"\n") or b"\n" not in part
        assert after


def test_a_line_of_many_megabytes_is_cut_at_the_exact_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5_000_000)
    found = documents(tmp_path / "a", document_bytes="1MB")
    assert list(map(len, found)) == [1_000_000] * 5


def test_folders_are_read_in_order_and_hidden_files_passed_over(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/y.bin", ".git/config", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert documents(tmp_path) == [b"a/y.bin", b"a/z.txt", b"b.txt"]
    assert documents(tmp_path / "**/*.txt") == [b"a/z.txt", b"b.txt"]
    assert documents(tmp_path / "b.txt", tmp_path) == [b"b.txt", b"a/y.bin", b"a/z.txt"]


def test_packed_files_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert documents(tmp_path) == [b"packed"]


def test_one_path_may_be_given_without_a_list(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert [document.name for document in Config.read({"path": str(tmp_path / "a")}).documents()] == [
        str(tmp_path / "a")
    ]


@pytest.mark.parametrize("pattern", ["nowhere", "nowhere/*.txt", "no[w]here"])
def test_a_path_that_gives_nothing_is_named(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="here"):
        documents(tmp_path / pattern)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path.name} holds no files"):
        documents(tmp_path)


def test_a_path_is_needed() -> None:
    with pytest.raises(ConfigError, match="path"):
        Config.read({"path": []})
