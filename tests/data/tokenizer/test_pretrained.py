"""A tokenizer.json made here reads back with the same ids, and others' files are judged by what they keep."""

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Native
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from fairway.core.errors import TokenizerError
from fairway.data.tokenizer.bpe import Config as BpeConfig
from fairway.data.tokenizer.pretrained import Config, PretrainedTokenizer

HOME = Path(sysconfig.get_paths()["stdlib"])
TEXT = (HOME / "argparse.py").read_bytes()
ODD = "  Größe 漢字漢字 x=12345 \n\n\t<|document|> don't ".encode()


def gpt2_like(path: Path, **settings: Any) -> Path:
    library = Native(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("prefix", False))
    library.decoder = decoders.ByteLevel()
    if settings.get("lower"):
        library.normalizer = normalizers.Lowercase()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
    )
    library.train_from_iterator([TEXT.decode()], trainer)
    library.save(str(path))
    return path


@pytest.mark.parametrize("digits", ["none", "single", "three"])
@pytest.mark.parametrize("spaces", ["prefix", "alone"])
def test_an_exported_tokenizer_gives_the_same_ids_in_the_library(digits: str, spaces: str) -> None:
    ours = BpeConfig.read({"vocabulary": 600, "digits": digits, "spaces": spaces}).train([TEXT], 0)
    library = Native.from_str(ours.tokenizer_json())
    library.encode_special_tokens = True
    for text in (TEXT, ODD, b"a" * 300, b" " * 200, "漢".encode() * 100):
        assert library.encode(text.decode()).ids == ours.encode(text).tolist()
    assert library.decode(ours.encode(TEXT).tolist()) == TEXT.decode()
    assert PretrainedTokenizer.load(ours.tokenizer_json().encode()).boundary == ours.boundary


def test_a_byte_level_file_of_others_is_lossless_and_keeps_the_ids_of_its_library(tmp_path: Path) -> None:
    path = gpt2_like(tmp_path / "tokenizer.json")
    tokenizer = Config.read({"path": str(path)}).train([], 0)
    assert tokenizer.lossless
    assert tokenizer.boundary == 0
    assert tokenizer.encode(TEXT).tolist() == Native.from_file(str(path)).encode(TEXT.decode()).ids
    for text in (ODD, b"\xff\xfeab\x80", b"<|endoftext|>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.boundary not in ids.tolist()


@pytest.mark.parametrize("setting", ["lower", "prefix"])
def test_a_file_that_changes_the_text_is_not_called_lossless(setting: str, tmp_path: Path) -> None:
    path = gpt2_like(tmp_path / "tokenizer.json", **{setting: True})
    tokenizer = Config.read({"path": str(path)}).train([], 0)
    assert not tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode(b"Word")) != b"Word"


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"model": {}}', b"\xff", b"[" * 100_000])
def test_what_is_no_tokenizer_json_is_refused(data: bytes) -> None:
    with pytest.raises(TokenizerError):
        PretrainedTokenizer.load(data)


def test_an_enormous_id_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    described = json.loads(gpt2_like(tmp_path / "tokenizer.json").read_text())
    described["model"]["vocab"]["q"] = (1 << 32) - 2
    with pytest.raises(TokenizerError):
        PretrainedTokenizer.load(json.dumps(described).encode())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere\.json"):
        Config.read({"path": str(tmp_path / "nowhere.json")}).train([], 0)
