"""What every tokenizer promises, for each kind found in the slot, and proof that each check can fail."""

import io
import os
import random
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.core.config import Slot
from fairway.core.errors import TokenizerError
from fairway.data.parts import Tokenizer, TokenizerConfig, load_tokenizer

SLOT = Slot("fairway.data.tokenizer", "bpe")
KINDS = SLOT.kinds()
HOME = Path(sysconfig.get_paths()["stdlib"])
TEXTS = [(HOME / name).read_bytes() for name in ("argparse.py", "textwrap.py", "heapq.py")]
ODD = [
    b"",
    b"\0",
    b"a\0b",
    b"\xff",
    b"\xfe\xfd\xff" * 5,
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\xef\xbb\xbfmark",
    b"line\r\nline\rline\n\n",
    b"\t  two  spaces \t",
    "naïve Ünïcode 漢字 \U0001f600 a\u0301\u200b\u2581".encode(),
    b"<|document|><s></s><unk><0x41> <|endoftext|>",
    b"\xe6\xbc",
    b"1234567890 12 1,000",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    config = SLOT.config("bpe").read({"vocabulary": 500})
    assert isinstance(config, TokenizerConfig)
    bpe: Any = config.train(TEXTS, 0)
    (folder / "tokenizer.json").write_text(bpe.tokenizer_json(), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    needs = {"pretrained": {"path": str(folder / "tokenizer.json")}}
    needs["sentencepiece"] = {"path": str(folder / "tokenizer.model")}
    return {kind: trained(kind, TEXTS, **needs.get(kind, {})) for kind in KINDS}


def trained(kind: str, texts: Iterable[bytes], **settings: object) -> Tokenizer:
    fields = SLOT.config(kind).model_fields
    small = {"vocabulary": 500} if "vocabulary" in fields else {}
    config = SLOT.config(kind).read({"kind": kind, **small, **settings})
    assert isinstance(config, TokenizerConfig)
    return config.train(texts, 0)


def sentencepiece_model() -> bytes:
    """A model that keeps everything SentencePiece can keep."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(b"\n".join(TEXTS).decode().splitlines()),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def check_round_trip(tokenizer: Tokenizer, texts: Iterable[bytes]) -> None:
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def check_ids(tokenizer: Tokenizer, texts: Iterable[bytes]) -> None:
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids.dtype == tokenizer.dtype
        assert ids.ndim == 1
        assert all(0 <= token < tokenizer.vocabulary and token != tokenizer.boundary for token in ids.tolist())


def check_boundary_has_no_bytes(tokenizer: Tokenizer) -> None:
    assert 0 <= tokenizer.boundary < tokenizer.vocabulary
    assert tokenizer.piece(tokenizer.boundary) == b""
    ids = tokenizer.encode(b"some text").tolist()
    assert tokenizer.decode([tokenizer.boundary, *ids, tokenizer.boundary]) == tokenizer.decode(ids)


def check_saved(tokenizer: Tokenizer, texts: Iterable[bytes]) -> None:
    again = load_tokenizer(tokenizer.kind, tokenizer.save())
    assert again.save() == tokenizer.save()
    assert (again.vocabulary, again.boundary) == (tokenizer.vocabulary, tokenizer.boundary)
    for text in texts:
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


def check_encode_all(tokenizer: Tokenizer, texts: list[bytes]) -> None:
    together = [ids.tolist() for ids in tokenizer.encode_all(texts)]
    assert together == [tokenizer.encode(text).tolist() for text in texts]


def check_foreign_ids(tokenizer: Tokenizer) -> None:
    for token in (-1, tokenizer.vocabulary, 1 << 40):
        with pytest.raises(TokenizerError):
            tokenizer.decode([token])
        with pytest.raises(TokenizerError):
            tokenizer.piece(token)


def check_any_ids_decode(tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    for _ in range(200):
        assert isinstance(tokenizer.decode([draw.randrange(tokenizer.vocabulary) for _ in range(20)]), bytes)


def check_long_runs(tokenizer: Tokenizer, seconds: float, length: int = 1_000_000) -> None:
    for run in (b"a", b" ", b"^", b"ab", b"A", b"7", "漢".encode(), b"\n", b"\x00"):
        text = run * (length // len(run))
        start = time.process_time()
        ids = tokenizer.encode(text)
        assert time.process_time() - start < seconds
        assert tokenizer.decode(ids) == text or not tokenizer.lossless


@pytest.mark.parametrize("kind", KINDS)
def test_every_tokenizer_keeps_its_promises(kind: str, made: dict[str, Tokenizer]) -> None:
    tokenizer = made[kind]
    texts = [*TEXTS, *ODD]
    assert tokenizer.kind == kind
    check_round_trip(tokenizer, texts if tokenizer.lossless else TEXTS)
    check_ids(tokenizer, texts)
    check_boundary_has_no_bytes(tokenizer)
    check_saved(tokenizer, texts)
    check_encode_all(tokenizer, texts)
    check_foreign_ids(tokenizer)
    check_any_ids_decode(tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_training_twice_gives_the_same_tokenizer(kind: str, made: dict[str, Tokenizer]) -> None:
    if "path" in SLOT.config(kind).model_fields:
        again = load_tokenizer(kind, made[kind].save())
    else:
        again = trained(kind, iter(TEXTS))
    assert again.save() == made[kind].save()


@pytest.mark.parametrize("kind", KINDS)
def test_a_million_bytes_of_one_kind_take_less_than_two_seconds(kind: str, made: dict[str, Tokenizer]) -> None:
    check_long_runs(made[kind], 2.0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sentencepiece"])
@settings(max_examples=150)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_come_back(kind: str, made: dict[str, Tokenizer], data: bytes) -> None:
    assert made[kind].lossless
    check_round_trip(made[kind], [data])


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes_come_back_from_every_lossless_tokenizer(kind: str, made: dict[str, Tokenizer]) -> None:
    draw = random.Random(1)
    texts = [draw.randbytes(draw.randrange(1, 5000)) for _ in range(40)]
    check_ids(made[kind], texts)
    if made[kind].lossless:
        check_round_trip(made[kind], texts)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_saved_bytes_end_in_one_error_or_a_working_tokenizer(kind: str, made: dict[str, Tokenizer]) -> None:
    saved, draw = made[kind].save(), random.Random(2)
    for _ in range(60):
        data = bytearray(saved or b"x")
        for _ in range(draw.choice((1, 1, 3, 20))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        hostile = bytes(data[: draw.choice((len(data), len(data), draw.randrange(len(data) + 1)))])
        try:
            tokenizer = load_tokenizer(kind, hostile)
        except TokenizerError:
            continue
        try:
            assert isinstance(tokenizer.decode(tokenizer.encode(TEXTS[1][:500])), bytes)
        except TokenizerError:
            continue


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TokenizerError, match="bpe"):
        load_tokenizer("bpf", b"")


class Faulty(Tokenizer):
    """The byte tokenizer with one planted fault."""

    kind = "byte"
    vocabulary, boundary, lossless = 257, 256, True

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def encode(self, data: bytes) -> np.ndarray:
        start = time.process_time()
        while self.fault == "slow" and time.process_time() - start < len(data) / 100_000:
            pass
        ids = list(data.strip() if self.fault == "strips" else data)
        return np.array([256, *ids] if self.fault == "boundary inside" else ids, np.dtype("<u2"))

    def encode_all(self, texts: Any) -> list[np.ndarray]:
        found = [self.encode(text) for text in texts]
        return found[::-1] if self.fault == "other order" else found

    def decode(self, ids: Any) -> bytes:
        ids = [int(token) for token in ids]
        if self.fault != "takes foreign ids" and not all(0 <= token <= 256 for token in ids):
            raise TokenizerError("foreign")
        mark = b"|" if self.fault == "boundary bytes" else b""
        return b"".join(mark if token == 256 else bytes([token % 256]) for token in ids)

    def piece(self, token: int) -> bytes:
        return self.decode([token])

    def save(self) -> bytes:
        return os.urandom(4) if self.fault == "saves noise" else b""

    @classmethod
    def load(cls, data: bytes) -> "Faulty":  # noqa: ARG003
        return cls("")


FAULTS: list[tuple[str, Callable[[Tokenizer], None]]] = [
    ("strips", lambda tokenizer: check_round_trip(tokenizer, ODD)),
    ("boundary inside", lambda tokenizer: check_ids(tokenizer, TEXTS)),
    ("boundary bytes", check_boundary_has_no_bytes),
    ("saves noise", lambda tokenizer: check_saved(tokenizer, ODD)),
    ("other order", lambda tokenizer: check_encode_all(tokenizer, ODD)),
    ("takes foreign ids", check_foreign_ids),
    ("slow", lambda tokenizer: check_long_runs(tokenizer, 0.2, 30_000)),
]


@pytest.mark.parametrize(("fault", "check"), FAULTS, ids=[fault for fault, _ in FAULTS])
def test_each_check_fails_on_its_planted_fault(fault: str, check: Callable[[Tokenizer], None]) -> None:
    check(Faulty(""))
    with pytest.raises((AssertionError, TokenizerError, pytest.fail.Exception)):
        check(Faulty(fault))
