"""Every byte of the source is accounted for, the splits are apart, and damage anywhere is found and named."""

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairway.core import storage
from fairway.core.errors import DataError, FairwayError, TokenizerError
from fairway.data.manifest import DataConfig, Manifest, prepare

WORDS = b"one two three four five six seven eight nine ten the and of to a in".split()


def corpus(folder: Path, documents: int = 60, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for number in range(documents):
        text = b" ".join(draw.choices(WORDS, k=draw.randrange(20, 200)))
        (folder / f"{number:03d}.txt").write_bytes(text + b" \xff\x00" * (number % 3))
    return folder


def config(path: Path, **settings: Any) -> DataConfig:
    tokenizer = {"kind": "bpe", "vocabulary": 300}
    return DataConfig.read({"source": {"kind": "text", "path": str(path)}, "tokenizer": tokenizer, **settings})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("prepared")
    text = corpus(folder / "text")
    (text / "copy.txt").write_bytes((text / "000.txt").read_bytes())
    (text / "empty.txt").write_bytes(b"")
    return prepare(config(text, validation_fraction=0.2), folder / "data")


def files_of(manifest: Manifest) -> list[bytes]:
    return [path.read_bytes() for path in sorted((manifest.folder.parent / "text").iterdir())]


def test_every_byte_that_was_read_is_accounted_for(prepared: Manifest) -> None:
    files = files_of(prepared)
    assert prepared.read_from_source.documents == len(files) == 62
    assert prepared.read_from_source.bytes == sum(map(len, files))
    assert prepared.dropped["empty"].documents == 1
    assert prepared.dropped["duplicate"].bytes == len(files[0])
    kept = prepared.train.bytes + prepared.validation.bytes
    assert kept + prepared.dropped["duplicate"].bytes == prepared.read_from_source.bytes
    assert prepared.train.documents + prepared.validation.documents == 60


def test_the_tokens_spell_the_documents_each_behind_its_boundary(prepared: Manifest) -> None:
    seen: set[bytes] = set()
    for split in ("train", "validation"):
        stream = prepared.tokens(split)
        tokens = np.empty(len(stream), np.int64)
        stream.read(0, tokens)
        starts = np.flatnonzero(tokens == prepared.tokenizer.boundary).tolist()
        assert starts[0] == 0
        texts = [
            prepared.tokenizer.decode(tokens[a + 1 : b])
            for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)
        ]
        index = prepared.index(split)
        assert [hashlib.sha256(text).digest()[:16] for text in texts] == [bytes(row) for row in index["digest"]]
        assert [len(text) for text in texts] == index["bytes"].tolist()
        assert not seen & set(texts)
        seen |= set(texts)
        if split == "validation":
            assert texts == prepared.validation_documents()
    assert seen == set(files_of(prepared)) - {b""}


def test_the_split_is_by_content_and_near_the_wished_share(prepared: Manifest) -> None:
    share = prepared.validation.bytes / (prepared.train.bytes + prepared.validation.bytes)
    assert share == pytest.approx(0.2, abs=0.03)
    threshold = bytes.fromhex(prepared.threshold)
    held = {hashlib.sha256(text).digest()[:16] for text in prepared.validation_documents()}
    everything = {hashlib.sha256(text).digest()[:16] for text in files_of(prepared) if text}
    assert held == {digest for digest in everything if digest < threshold}


def test_names_and_order_of_the_files_do_not_move_a_document(prepared: Manifest, tmp_path: Path) -> None:
    for number, text in enumerate(reversed(files_of(prepared))):
        (tmp_path / f"renamed-{number:03d}").write_bytes(text)
    again = prepare(config(tmp_path, validation_fraction=0.2), tmp_path.parent / f"{tmp_path.name}-data")
    assert sorted(again.validation_documents()) == sorted(prepared.validation_documents())


def test_the_tokenizer_sees_training_text_only(tmp_path: Path) -> None:
    # Each document repeats a byte of its own; what the tokenizer merges shows which documents it has seen.
    for byte in range(65, 91):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / chr(byte)).write_bytes(bytes([byte]) * 300)
    settings = {"validation_fraction": 0.4}
    manifest = prepare(config(tmp_path / "text", **settings), tmp_path / "data")
    pieces = b"".join(manifest.tokenizer.piece(token) for token in range(257, manifest.tokenizer.vocabulary))
    held = {text[0] for text in manifest.validation_documents()}
    assert held
    assert not held & set(pieces)
    assert len(set(pieces)) == 26 - len(held)


def test_preparing_twice_gives_the_same_bytes_in_every_file(prepared: Manifest, tmp_path: Path) -> None:
    text = prepared.folder.parent / "text"
    again = prepare(config(text, validation_fraction=0.2), tmp_path / "data")
    ours, theirs = (sorted(folder.iterdir()) for folder in (prepared.folder, again.folder))
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


def test_reading_gives_an_equal_manifest(prepared: Manifest) -> None:
    assert Manifest.read(prepared.folder) == prepared


def test_a_cap_on_the_text_is_kept_and_what_lies_behind_it_counted(tmp_path: Path) -> None:
    text = corpus(tmp_path / "text")
    manifest = prepare(config(text, max_bytes=5000), tmp_path / "data")
    assert 4000 < manifest.train.bytes + manifest.validation.bytes <= 5000
    assert manifest.dropped["beyond_max_bytes"].documents == 1
    assert manifest.read_from_source.documents < 60


def test_dropout_touches_the_training_tokens_alone(tmp_path: Path) -> None:
    text = corpus(tmp_path / "text")
    plain = prepare(config(text), tmp_path / "plain")
    random_cut = {"kind": "bpe", "vocabulary": 300, "dropout": 0.3}
    dropped = prepare(config(text, tokenizer=random_cut), tmp_path / "dropped")
    assert dropped.train.tokens > plain.train.tokens
    assert dropped.validation.tokens == plain.validation.tokens


def test_progress_rises_to_one(tmp_path: Path) -> None:
    seen: list[float] = []
    prepare(config(corpus(tmp_path / "text")), tmp_path / "data", lambda share, _: seen.append(share))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({}, {}, "no files"),
        ({"a": b""}, {}, "no text: 1 documents were read, of them 1 empty"),
        ({"a": b"text"}, {}, "at least two"),
        ({"a": b"text", "b": b"text"}, {}, "at least two"),
        ({"a": b"longer text", "b": b"other"}, {"max_bytes": 3}, "1 beyond max bytes"),
    ],
)
def test_a_corpus_that_cannot_be_split_is_refused_and_leaves_nothing(
    files: dict[str, bytes], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    for name, data in files.items():
        (tmp_path / "text" / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        prepare(config(tmp_path / "text", **settings), tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    text = corpus(tmp_path / "text")
    with pytest.raises(DataError, match="something else"):
        prepare(config(text), text)
    assert len(list(text.iterdir())) == 60


def test_a_tokenizer_that_loses_text_is_refused_unless_asked(tmp_path: Path) -> None:
    text = corpus(tmp_path / "text")
    lossy = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"one": 0, "?": 1}, "unk_token": "?"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(lossy))
    tokenizer: dict[str, Any] = {"kind": "pretrained", "path": str(tmp_path / "tokenizer.json")}
    with pytest.raises(TokenizerError, match="of 60 documents"):
        prepare(config(text, tokenizer=tokenizer), tmp_path / "data")
    manifest = prepare(config(text, tokenizer={**tokenizer, "accept_loss": True}), tmp_path / "data")
    assert manifest.lossy_documents == 60
    assert not manifest.tokenizer_record.lossless


def test_every_flipped_bit_is_found_and_the_file_named(prepared: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared.folder, folder)
    draw = random.Random(0)
    for path in sorted(folder.iterdir()):
        if path.name == storage.MANIFEST:
            continue
        good = path.read_bytes()
        for _ in range(40):
            bad = bytearray(good)
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
            path.write_bytes(bad)
            with pytest.raises(DataError, match=path.name.replace(".", r"\.")):
                Manifest.read(folder)
        for bad in (good[:-1], good + b"\0", b""):
            path.write_bytes(bad)
            with pytest.raises(DataError, match=path.name.replace(".", r"\.")):
                Manifest.read(folder, check=False)
        path.unlink()
        with pytest.raises(DataError, match=path.name.replace(".", r"\.")):
            Manifest.read(folder)
        path.write_bytes(good)
    assert Manifest.read(folder).train == prepared.train


def resealed(folder: Path, change: Any) -> None:
    manifest = json.loads((folder / storage.MANIFEST).read_text())
    del manifest["files"], manifest[storage.DIGEST]
    change(manifest)
    storage.seal(folder, manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["train"].update(bytes=1), "accounts for"),
        (lambda record: record.update(dropped={}), "accounts for"),
        (lambda record: record.update(threshold="00" * 16), "belongs to the other split"),
        (lambda record: record.update(threshold="ff" * 16), "belongs to the other split"),
        (lambda record: record.update(surplus=1), "surplus"),
        (lambda record: record.pop("train"), "train"),
        (lambda record: record.update(version=9), "version"),
        (
            lambda record: record["train"].update(shards=["../train-00000.tokens"]),
            "not in the manifest's list",
        ),
        (lambda record: record["tokenizer_record"].update(sha256="0" * 64), "not the tokenizer"),
    ],
)
def test_a_manifest_that_contradicts_its_files_is_refused(
    change: Any, message: str, prepared: Manifest, tmp_path: Path
) -> None:
    shutil.copytree(prepared.folder, tmp_path / "data")
    resealed(tmp_path / "data", change)
    with pytest.raises(DataError, match=message):
        Manifest.read(tmp_path / "data")


def test_a_training_document_smuggled_into_validation_is_found(prepared: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared.folder, folder)
    rows = prepared.index("validation").copy()
    rows["digest"][0] = prepared.index("train")["digest"][0]
    (folder / "validation.index").write_bytes(rows.tobytes())
    resealed(folder, lambda _: None)
    with pytest.raises(DataError, match="belongs to the other split"):
        Manifest.read(folder)


def test_validation_text_that_is_not_what_was_hashed_is_refused(prepared: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared.folder, folder)
    data = (folder / "validation.bin").read_bytes()
    (folder / "validation.bin").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    resealed(folder, lambda _: None)
    with pytest.raises(DataError, match="does not match its digest"):
        Manifest.read(folder).validation_documents()


def test_stopping_at_any_instant_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    text = corpus(tmp_path / "text")
    passed: list[str] = []
    with storage.faults(passed.append):
        prepare(config(text), tmp_path / "data")
    old = Manifest.read(tmp_path / "data")
    for instant in range(0, len(passed), 3):
        left = iter(range(instant, -1, -1))

        def stop(name: str, left: Any = left) -> None:
            if next(left) == 0:
                raise KeyboardInterrupt(name)

        with storage.faults(stop), pytest.raises(KeyboardInterrupt):
            prepare(config(text, seed=1), tmp_path / "data")
        try:
            assert Manifest.read(tmp_path / "data").train == old.train
        except FairwayError:
            assert not (tmp_path / "data").exists()


def test_the_standard_library_gives_the_promised_validation_size() -> None:
    sizes = [len(document.data) for document in DataConfig.read({}).source.documents()]
    assert 300_000 < DataConfig.read({}).validation_fraction * sum(sizes) < 700_000
