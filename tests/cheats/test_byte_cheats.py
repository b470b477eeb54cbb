"""The cheat zoo, bytes: known ways of counting the bytes of a text wrong, each refused with its reason named."""

import io
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest

from fairway.core.errors import EvaluationError
from fairway.data.parts import Tokenizer
from fairway.data.sentencepiece_model import Model as PieceModel
from fairway.data.sentencepiece_model import read_model
from fairway.evaluate.bpb import EvaluateConfig, judge
from fairway.evaluate.challenge import byte_table, table_gate
from fairway.evaluate.gates import refuse_failures
from fairway.serve.model import Model
from fairway.serve.scoring import NetworkPredictor
from fairway.serve.window import Policy

sentencepiece = pytest.importorskip("sentencepiece")

POLICY = Policy(12, 5)
CONFIG = EvaluateConfig(stride=5)


class Planted(Tokenizer):
    """An honest tokenizer, for faults to be planted in."""

    kind = "planted"

    def __init__(self, honest: Tokenizer) -> None:
        self.honest = honest
        self.vocabulary, self.boundary, self.lossless = honest.vocabulary, honest.boundary, honest.lossless

    def encode(self, data: bytes) -> np.ndarray:
        return self.honest.encode(data)

    def decode(self, ids: Iterable[int] | np.ndarray) -> bytes:
        return self.honest.decode(ids)

    def piece(self, token: int) -> bytes:
        return self.honest.piece(token)

    def save(self) -> bytes:
        return self.honest.save()

    @classmethod
    def load(cls, data: bytes) -> "Planted":
        raise NotImplementedError(data)


class FoldsCase(Planted):
    """Loses capital letters, which then cost nothing."""

    def encode(self, data: bytes) -> np.ndarray:
        return self.honest.encode(data.lower())


class CountsSpacesTwice(Planted):
    """Says that a piece with a leading space holds one byte more."""

    def piece(self, token: int) -> bytes:
        piece = self.honest.piece(token)
        return b" " + piece if piece.startswith(b" ") else piece


class CountsBoundaries(Planted):
    """Says that the mark between documents is text."""

    def piece(self, token: int) -> bytes:
        return b"<s>" if token == self.boundary else self.honest.piece(token)


class HidesBytesInBoundaries(Planted):
    """Leaves hard bytes out of the text and puts boundaries there."""

    def encode(self, data: bytes) -> np.ndarray:
        ids = self.honest.encode(data).copy()
        ids[ids == 104] = self.boundary
        return ids


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (FoldsCase, "decode.encode.text.* came back"),
        (CountsSpacesTwice, "bytes from the text: .* are said to hold"),
        (CountsBoundaries, "bytes from the text: The boundary is said to hold 3 bytes"),
        (HidesBytesInBoundaries, "The boundary stands inside document"),
    ],
)
def test_a_tokenizer_that_miscounts_or_loses_text_is_refused(model: Model, fault: type[Planted], reason: str) -> None:
    texts = [b"Hello World, what a Hat"]
    assert judge(NetworkPredictor(model.network), Planted(model.tokenizer), texts, POLICY, CONFIG).bytes == len(
        texts[0]
    )
    with pytest.raises(EvaluationError, match=reason):
        judge(NetworkPredictor(model.network), fault(model.tokenizer), texts, POLICY, CONFIG)


@pytest.fixture(scope="module")
def pieces() -> PieceModel:
    lines = ["the cat sat on the mat and the dog sat there too"] * 50
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="bpe",
        vocab_size=290,
        byte_fallback=True,
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
        num_threads=1,
    )
    return read_model(out.getvalue())


SPOKEN = [b"the cat sat on the mat", "the café sat there".encode()]


def space_twice(pieces: PieceModel) -> np.ndarray:
    table = byte_table(pieces)
    return table.base_V + table.lead_V


def fallback_as_three(pieces: PieceModel) -> np.ndarray:
    table = byte_table(pieces)
    return np.array([3 if pieces.processor.IsByte(token) else base for token, base in enumerate(table.base_V.tolist())])


def space_mark_as_text(pieces: PieceModel) -> np.ndarray:
    processor = pieces.processor
    texts = [processor.IdToPiece(token).encode() for token in range(processor.GetPieceSize())]
    plain = byte_table(pieces).base_V
    lead = byte_table(pieces).lead_V
    return np.where(lead, [len(text) for text in texts], plain)


def marks_as_text(pieces: PieceModel) -> np.ndarray:
    table = byte_table(pieces)
    processor = pieces.processor
    return np.array(
        [
            len(processor.IdToPiece(token)) if processor.IsControl(token) else base
            for token, base in enumerate(table.base_V)
        ]
    )


def a_constant(pieces: PieceModel) -> np.ndarray:
    table = byte_table(pieces)
    return np.where(table.boundary_V, 0, 4)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (space_twice, "leading space of piece .* is counted twice"),
        (fallback_as_three, "Byte piece .* is counted as 3 bytes; it is one"),
        (space_mark_as_text, "space mark of piece .* is not taken for a space"),
        (marks_as_text, "is a mark, not text, and is counted as"),
        (a_constant, "is counted as 4 bytes"),
    ],
)
def test_a_table_that_miscounts_bytes_is_refused(
    pieces: PieceModel, fault: Callable[[PieceModel], np.ndarray], reason: str
) -> None:
    honest = byte_table(pieces)
    refuse_failures([table_gate(honest, pieces, SPOKEN)])
    lead = np.zeros_like(honest.lead_V) if fault is space_mark_as_text else honest.lead_V
    planted = replace(honest, base_V=fault(pieces), lead_V=lead)
    with pytest.raises(EvaluationError, match=reason):
        refuse_failures([table_gate(planted, pieces, SPOKEN)])
