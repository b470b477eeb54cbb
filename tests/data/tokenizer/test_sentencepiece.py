"""SentencePiece models of others: exact bytes of every piece, and losses that show."""

import io
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from fairway.core.errors import TokenizerError
from fairway.data.tokenizer.sentencepiece import Config, SentencePieceTokenizer

TEXT = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_bytes()


def model(**settings: Any) -> bytes:
    written = io.BytesIO()
    options: dict[str, Any] = {
        "vocab_size": 600,
        "model_type": "bpe",
        "byte_fallback": True,
        "minloglevel": 2,
        **settings,
    }
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXT.decode().splitlines()), model_writer=written, **options
    )
    return written.getvalue()


KEEPING = model(normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False)
COMMON = model()
CONTEST = model(
    normalization_rule_name="nmt_nfkc",
    add_dummy_prefix=False,
    split_digits=True,
    pad_id=0,
    bos_id=1,
    eos_id=2,
    unk_id=3,
)


def test_a_keeping_model_gives_text_and_stray_bytes_back() -> None:
    tokenizer = SentencePieceTokenizer.load(KEEPING)
    for text in (TEXT, "Größe 漢字\n".encode(), b"a\xff\x80b", b" two  spaces "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_are_those_of_the_package() -> None:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(CONTEST)
    assert SentencePieceTokenizer.load(CONTEST).encode(TEXT[:5000]).tolist() == processor.EncodeAsIds(
        TEXT[:5000].decode()
    )


def test_a_blank_that_encoding_adds_is_taken_away_again() -> None:
    tokenizer = SentencePieceTokenizer.load(COMMON)
    assert tokenizer.decode(tokenizer.encode(b"plain words")) == b"plain words"


def test_the_boundary_is_the_begin_symbol_or_one_more_id() -> None:
    assert SentencePieceTokenizer.load(CONTEST).boundary == 1
    without = SentencePieceTokenizer.load(model(bos_id=-1))
    assert without.boundary == without.vocabulary - 1 == 600
    assert without.piece(600) == b""


def test_what_a_common_model_loses_is_seen() -> None:
    tokenizer = SentencePieceTokenizer.load(COMMON)
    assert not tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode(b"two  spaces")) == b"two spaces"


@pytest.mark.parametrize("data", [b"", b"not a model", KEEPING[: len(KEEPING) // 2]])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(TokenizerError):
        SentencePieceTokenizer.load(data)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere\.model"):
        Config.read({"path": str(tmp_path / "nowhere.model")}).train([], 0)
