"""What every source promises, for each kind found in the slot, and proof that each check can fail."""

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from fairway.core.config import Slot
from fairway.core.errors import DataError, TokenizerError
from fairway.data.parts import Document, SourceConfig

SLOT = Slot("fairway.data.source", "stdlib")
KINDS = SLOT.kinds()
TEXTS = [f"Document {number}: ä\u2028 line\n\tsecond line\r\n" * (number + 1) for number in range(12)]

Settings = dict[str, Any]


def no_input(_folder: Path) -> Settings:
    return {}


def text_input(folder: Path) -> Settings:
    for number, text in enumerate(TEXTS):
        (folder / f"{number:02d}.txt").write_bytes(text.encode())
    return {"path": str(folder)}


def jsonl_input(folder: Path) -> Settings:
    lines = [json.dumps({"text": text, "other": 1}) + "\n" for text in TEXTS]
    (folder / "a.jsonl").write_text("".join(lines[:5]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[5:]).encode()))
    return {"path": str(folder)}


def parquet_input(folder: Path) -> Settings:
    parquet.write_table(pyarrow.table({"text": TEXTS[:7]}), folder / "a.parquet")
    parquet.write_table(pyarrow.table({"text": TEXTS[7:]}), folder / "b.parquet")
    return {"path": str(folder)}


def hub_input(folder: Path) -> Settings:
    jsonl_input(folder)
    return {"name": "json", "files": (str(folder / "a.jsonl"), str(folder / "b.jsonl.gz"))}


def golf_input(folder: Path) -> Settings:
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["some text to have a model"] * 50),
        model_prefix=str(folder / "golf"),
        vocab_size=300,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "golf.model"))
    tokens = [token for text in TEXTS for token in (1, *processor.EncodeAsIds(text))]
    half = len(tokens) // 2
    for name, part in (("000", tokens[:half]), ("001", tokens[half:])):
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(part)
        (folder / f"{name}.bin").write_bytes(header.tobytes() + np.array(part, "<u2").tobytes())
    return {"path": str(folder), "model": str(folder / "golf.model")}


INPUTS: dict[str, Callable[[Path], Settings]] = {
    "stdlib": no_input,
    "text": text_input,
    "jsonl": jsonl_input,
    "parquet": parquet_input,
    "hub": hub_input,
    "golf": golf_input,
}


def source(kind: str, settings: Settings) -> SourceConfig:
    config = SLOT.config(kind).read({"kind": kind, **settings})
    assert isinstance(config, SourceConfig)
    return config


def check_documents(documents: list[Document], texts: list[str]) -> None:
    assert [document.data for document in documents] == [text.encode() for text in texts]


def check_names(documents: list[Document]) -> None:
    assert all(isinstance(document.data, bytes) and document.name for document in documents)
    assert len({document.name for document in documents}) == len(documents)


def check_repeatable(config: SourceConfig) -> None:
    assert list(config.documents()) == list(config.documents())


def check_streams(config: SourceConfig, most: int) -> None:
    tracemalloc.start()
    try:
        total = sum(len(document.data) for document in config.documents())
        assert tracemalloc.get_traced_memory()[1] < most < total
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_source_keeps_its_promises(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    if kind == "hub":
        pytest.importorskip("datasets")
    (tmp_path / "input").mkdir()
    config = source(kind, INPUTS[kind](tmp_path / "input"))
    documents = list(config.documents())
    check_names(documents)
    check_repeatable(config)
    if kind != "stdlib":
        check_documents(documents, TEXTS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("stdlib", "hub")])
def test_a_missing_path_ends_in_one_error_that_names_it(kind: str, tmp_path: Path) -> None:
    settings = {**INPUTS[kind](tmp_path), "path": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match="nowhere"):
        list(source(kind, settings).documents())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("stdlib", "hub", "text")])
@pytest.mark.parametrize("fault", ["noise", "cut", "empty"])
def test_a_damaged_file_ends_in_one_error_that_names_it(kind: str, fault: str, tmp_path: Path) -> None:
    settings = INPUTS[kind](tmp_path)
    path = max(tmp_path.glob("*[lqn]*"), key=lambda path: (path.suffix not in (".model", ".vocab"), path.name))
    data = path.read_bytes()
    path.write_bytes({"noise": b"\x93\x01{" * 40, "cut": data[: len(data) * 2 // 3], "empty": b""}[fault])
    with pytest.raises((DataError, TokenizerError), match=path.name.replace(".", r"\.")):
        list(source(kind, settings).documents())


def test_the_standard_library_is_read_without_its_tests() -> None:
    names = [document.name for document in source("stdlib", {}).documents()]
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    assert names == sorted(names)
    assert not any({"test", "tests", "idle_test", "site-packages"} & set(name.split("/")) for name in names)


def test_sources_stream_instead_of_holding_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_bytes(b"a line of text\n" * 400_000)
    check_streams(source("text", {"path": str(tmp_path / "big.txt")}), 2_000_000)
    with open(tmp_path / "big.jsonl", "w") as file:
        for _ in range(4000):
            file.write(json.dumps({"text": "a line of text\n" * 100}) + "\n")
    check_streams(source("jsonl", {"path": str(tmp_path / "big.jsonl")}), 2_000_000)
    check_streams(source("stdlib", {}), 6_000_000)


class Faulty(SourceConfig):
    """Gives the texts with one planted fault."""

    fault: str

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        return ("faulty",)

    def documents(self) -> Iterator[Document]:
        texts = [text.encode() for text in TEXTS]
        if self.fault == "order":
            CALLS.append(1)
            texts = texts[:: (-1) ** len(CALLS)]
        if self.fault == "newlines":
            texts = [text.replace(b"\r\n", b"\n") for text in texts]
        if self.fault == "holds all":
            texts = [bytes(bytearray(b"x" * 1_000_000)) for _ in range(5)]
        for number, text in enumerate(texts):
            yield Document("same" if self.fault == "names" else str(number), text)


CALLS: list[int] = []


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("newlines", lambda config: check_documents(list(config.documents()), TEXTS)),
        ("names", lambda config: check_names(list(config.documents()))),
        ("order", check_repeatable),
        ("holds all", lambda config: check_streams(config, 2_000_000)),
    ],
)
def test_each_check_fails_on_its_planted_fault(fault: str, check: Callable[[SourceConfig], None]) -> None:
    if fault != "holds all":
        check(Faulty.read({"fault": ""}))
    with pytest.raises(AssertionError):
        check(Faulty.read({"fault": fault}))
