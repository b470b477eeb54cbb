"""The challenge's shards are checked before a token of them is believed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairway.core.errors import DataError, TokenizerError
from fairway.data.source.golf import Config

sentencepiece = pytest.importorskip("sentencepiece")


def shard(path: Path, tokens: list[int], **fields: Any) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = fields.get("magic", 20240520), fields.get("version", 1), fields.get("count", len(tokens))
    path.write_bytes(header.tobytes() + np.array(tokens, "<u2").tobytes())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stem = tmp_path_factory.mktemp("golf") / "golf"
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["words of the challenge"] * 20),
        model_prefix=str(stem),
        vocab_size=290,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return stem.with_suffix(".model")


def texts(folder: Path, model: Path) -> list[bytes]:
    return [document.data for document in Config.read({"path": str(folder), "model": str(model)}).documents()]


def test_documents_begin_at_id_one_and_go_on_across_shards(model: Path, tmp_path: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    first, second = processor.EncodeAsIds("words of"), processor.EncodeAsIds("the challenge €")
    tokens = [1, *first, 1, *second, 1]
    for cut in range(len(tokens) + 1):
        shard(tmp_path / "a.bin", tokens[:cut])
        shard(tmp_path / "b.bin", tokens[cut:])
        assert texts(tmp_path, model) == [b"words of", "the challenge €".encode(), b""]


def test_single_byte_pieces_are_one_byte_each(model: Path, tmp_path: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    shard(tmp_path / "a.bin", [1, processor.PieceToId("<0xFF>"), processor.PieceToId("<0x0A>")])
    assert texts(tmp_path, model) == [b"\xff\n"]


@pytest.mark.parametrize("fields", [{"magic": 1}, {"version": 2}, {"count": 4}, {"count": 2}, {"count": -1}])
def test_a_header_that_lies_is_refused(fields: dict[str, int], model: Path, tmp_path: Path) -> None:
    shard(tmp_path / "a.bin", [1, 4, 5], **fields)
    with pytest.raises(DataError, match=r"a\.bin"):
        texts(tmp_path, model)


def test_a_token_beyond_the_model_is_refused(model: Path, tmp_path: Path) -> None:
    shard(tmp_path / "a.bin", [1, 60_000])
    with pytest.raises(DataError, match=r"a\.bin holds token 60000"):
        texts(tmp_path, model)


def test_a_missing_or_foreign_model_is_refused(tmp_path: Path) -> None:
    shard(tmp_path / "a.bin", [1])
    with pytest.raises(DataError, match=r"none\.model"):
        texts(tmp_path, tmp_path / "none.model")
    (tmp_path / "foreign.model").write_bytes(b"no model")
    with pytest.raises(TokenizerError):
        texts(tmp_path, tmp_path / "foreign.model")
