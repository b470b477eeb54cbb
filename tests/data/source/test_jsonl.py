"""Every line is a document or an error that names the line."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard

from fairway.core.errors import DataError
from fairway.data.source.jsonl import Config

LINES = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "zwei \u00e4", "\u6f22\0\r\n", "")).encode()
TEXTS = [b"one", "zwei ä".encode(), "漢\0\r\n".encode(), b""]


def documents(path: Path, **settings: object) -> list[bytes]:
    return [document.data for document in Config.read({"path": str(path), **settings}).documents()]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES[:-1]),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("a.jsonl.xz", lzma.compress(LINES)),
        ("a.jsonl.bz2", bz2.compress(LINES)),
        ("a.jsonl.zst", zstandard.compress(LINES[:20]) + zstandard.compress(LINES[20:])),
    ],
)
def test_plain_and_packed_lines_give_the_same_documents(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert documents(tmp_path / name) == TEXTS
    assert documents(tmp_path) == TEXTS


PACKED = {
    "a.jsonl.gz": gzip.compress,
    "a.jsonl.xz": lzma.compress,
    "a.jsonl.bz2": bz2.compress,
    "a.jsonl.zst": zstandard.compress,
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_a_packed_file_cut_short_is_refused_and_never_read_as_a_shorter_one(
    name: str, keep: float, tmp_path: Path
) -> None:
    whole = PACKED[name](b"".join(b'{"text": "%d"}\n' % number for number in range(5000)))
    (tmp_path / name).write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        documents(tmp_path / name)


@pytest.mark.parametrize("name", PACKED)
def test_what_is_not_packed_as_its_name_says_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(LINES)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        documents(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2 is not JSON"),
        (b'{"text": "a"', "line 2 is not JSON"),
        (b"\xff", "line 2 is not JSON"),
        (b"[" * 200_000, "line 2 is not JSON"),
        (b'{"other": "a", "also": 1}', r'line 2 has no field "text"; it holds the fields also, other'),
        (b'["text"]', "it holds a list"),
        (b'{"text": 5}', '"text" is a number; it must be a string'),
        (b'{"text": null}', '"text" is a null'),
        (b'{"text": "' + b"a" * 2000 + b'"}', "line 2 has more than 1,000 bytes"),
    ],
)
def test_a_bad_line_is_named_by_its_number(line: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    limit = 1_000 if b"aaaa" in line else 1_000_000
    with pytest.raises(DataError, match=message):
        documents(tmp_path / "a.jsonl", line_bytes=limit)


def test_another_field_can_be_chosen_and_blank_lines_hold_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "x", "text": "y"}\n\n  \n{"body": "z"}\n')
    assert documents(tmp_path / "a.jsonl", field="body") == [b"x", b"z"]


def test_an_unpaired_surrogate_keeps_its_three_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud800b"}\n')
    assert documents(tmp_path / "a.jsonl") == [b"a\xed\xa0\x80b"]
