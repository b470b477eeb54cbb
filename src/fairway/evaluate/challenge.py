"""The public challenge's score, reproduced exactly, beside the score on raw bytes, and what lies between them.

For SentencePiece ids: a control, unknown or unused id is a boundary of 0 bytes; a byte piece has 1; any
other piece has the UTF-8 length of its text without one leading space mark, and one more for that mark
unless the id before is a boundary. `bpb = nats / ln 2 / sum_t bytes(prev_t, target_t)` over windows of L
tokens side by side that cover floor((N - 1) / L) L targets of a stream in which BOS precedes every document;
BOS targets count in the nats and hold no bytes. OpenAI, Parameter Golf, 2026. The bytes are those of the
normalised text. Shape key: V vocabulary, N tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairway.core.errors import EvaluationError
from fairway.data.sentencepiece_model import SPACE_MARK, Model
from fairway.evaluate.gates import GateResult, refuse_failures
from fairway.serve.scoring import Predictor, score_sequences
from fairway.serve.window import Policy

WINDOW = 1024


@dataclass(frozen=True)
class ByteTable:
    """Bytes by id: `bytes(previous, target) = base[target] + (lead[target] and not boundary[previous])`."""

    base_V: np.ndarray
    lead_V: np.ndarray
    boundary_V: np.ndarray

    def bytes(self, stream_N: np.ndarray) -> int:
        """Bytes of every token of a stream but its first."""
        previous, target = stream_N[:-1].astype(np.int64), stream_N[1:].astype(np.int64)
        return int(self.base_V[target].sum() + (self.lead_V[target] & ~self.boundary_V[previous]).sum())


@dataclass(frozen=True)
class ChallengeScore:
    """A score by the challenge's formula."""

    nats: float
    tokens: int
    bytes: int
    window: int

    @property
    def bits_per_byte(self) -> float:
        """Bits for each byte of normalised text."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class Comparison:
    """Both scores of the same text, and what makes the difference."""

    challenge: ChallengeScore
    nats: float
    """Of every target, the last incomplete window included."""
    raw_bytes: int
    normalised_bytes: int
    tail_tokens: int
    """Targets that the formula leaves out behind its last whole window."""
    boundary_nats: float
    """Nats of BOS targets; part of both scores."""

    @property
    def raw_bits_per_byte(self) -> float:
        """Bits for each byte of the text as it was."""
        return self.nats / math.log(2) / self.raw_bytes

    def plain(self) -> dict[str, Any]:
        """Everything as JSON-able values, with the reasons for the difference."""
        return {
            "challenge_bits_per_byte": self.challenge.bits_per_byte,
            "raw_bits_per_byte": self.raw_bits_per_byte,
            "challenge": vars(self.challenge),
            **{name: value for name, value in vars(self).items() if name != "challenge"},
            "reasons": self.reasons(),
        }

    def reasons(self) -> list[str]:
        """Why the two numbers differ, one sentence each."""
        changed = self.normalised_bytes - self.raw_bytes
        left_out = self.normalised_bytes - self.challenge.bytes
        return [
            f"Normalisation turns {self.raw_bytes} bytes of raw text into {self.normalised_bytes} ({changed:+d}).",
            f"The formula leaves out {self.tail_tokens} tokens behind the last window of {self.challenge.window}, "
            f"and with them {left_out} bytes.",
            f"Both count {self.boundary_nats:.1f} nats for the marks between documents, which hold no bytes.",
        ]


def byte_table(model: Model, vocabulary: int | None = None) -> ByteTable:
    """The challenge's table; ids beyond the model's own, up to `vocabulary`, are boundaries of 0 bytes.

    Raises `EvaluationError` for a piece with a space mark inside, which the formula would count as three bytes.
    """
    processor = model.processor
    size = max(vocabulary or 0, processor.GetPieceSize())
    base, lead, boundary = np.zeros(size, np.int64), np.zeros(size, bool), np.ones(size, bool)
    for index in range(processor.GetPieceSize()):
        if processor.IsControl(index) or processor.IsUnknown(index) or processor.IsUnused(index):
            continue
        boundary[index] = False
        if processor.IsByte(index):
            base[index] = 1
            continue
        piece = processor.IdToPiece(index)
        lead[index] = piece.startswith(SPACE_MARK)
        text = piece.removeprefix(SPACE_MARK)
        if SPACE_MARK in text:
            raise EvaluationError(
                f"Piece {index} {piece!r} has a space mark inside; the formula cannot count its bytes."
            )
        base[index] = len(text.encode())
    return ByteTable(base, lead, boundary)


def table_gate(table: ByteTable, model: Model, texts: Sequence[bytes]) -> GateResult:
    """A table must count the bytes of the normalised text, no more and no fewer; says which kind of id is wrong."""
    name = "bytes from the text"
    for text in texts:
        normalised = normalise(model, text)
        counted, held = table.bytes(stream_of(model, [text])), len(normalised.encode())
        if counted != held:
            detail = f"The table counts {counted} bytes in a document of {held} ({counted / max(1, held):.4f} times)."
            return GateResult(name, False, f"{detail} {_first_fault(table, model)}")
    fault = _first_fault(table, model)
    return GateResult(
        name, not fault, fault or f"The table counts the bytes of {len(texts)} normalised documents exactly."
    )


def stream_of(model: Model, texts: Sequence[bytes]) -> np.ndarray:
    """BOS and ids of every document, one after another."""
    if model.bos < 0:
        raise EvaluationError("The SentencePiece model has no BOS, which must precede every document.")
    parts = [[model.bos, *model.processor.EncodeAsIds(_text(text))] for text in texts]
    return np.array([token for part in parts for token in part], np.int64)


def normalise(model: Model, text: bytes) -> str:
    """The text as the model sees it, without a first space: that one follows BOS, and the formula does not count it."""
    return model.processor.Normalize(_text(text)).replace(SPACE_MARK, " ").removeprefix(" ")


def challenge_score(
    predictor: Predictor, stream: np.ndarray, table: ByteTable, window: int = WINDOW, batch: int = 32
) -> ChallengeScore:
    """The formula on a stream of ids, such as the challenge's validation shards joined in the order of their names."""
    usable = (len(stream) - 1) // window * window
    if usable <= 0:
        raise EvaluationError(f"A stream of {len(stream)} tokens holds no whole window of {window} targets.")
    if len(table.base_V) < predictor.vocabulary or int(stream.max()) >= predictor.vocabulary:
        raise EvaluationError(
            f"The table has {len(table.base_V)} ids and the stream goes up to {stream.max()}; "
            f"the model has {predictor.vocabulary}."
        )
    part = stream[: usable + 1].astype(np.int64)
    tally = score_sequences(predictor, [part], Policy(window, window), batch)
    counted = table.bytes(part)
    if not counted:
        raise EvaluationError("The stream holds no bytes by the table.")
    return ChallengeScore(tally.total(), usable, counted, window)


def compare(
    predictor: Predictor, model: Model, texts: Sequence[bytes], window: int = WINDOW, batch: int = 32
) -> Comparison:
    """Both scores of UTF-8 documents; raises `EvaluationError` where the table does not count their bytes."""
    table = byte_table(model, predictor.vocabulary)
    refuse_failures([table_gate(table, model, texts)])
    stream = stream_of(model, texts)
    tally = score_sequences(predictor, [stream], Policy(window, window), batch)
    return Comparison(
        challenge=challenge_score(predictor, stream, table, window, batch),
        nats=tally.total(),
        raw_bytes=sum(map(len, texts)),
        normalised_bytes=sum(len(normalise(model, text).encode()) for text in texts),
        tail_tokens=(len(stream) - 1) % window,
        boundary_nats=math.fsum(tally.nats[0][stream[1:] == model.bos].tolist()),
    )


def _first_fault(table: ByteTable, model: Model) -> str:
    """What is wrong with the first wrong id; empty where the table is the challenge's."""
    right = byte_table(model, len(table.base_V))
    for index in range(len(table.base_V)):
        base, expected = int(table.base_V[index]), int(right.base_V[index])
        piece = model.processor.IdToPiece(index) if index < model.processor.GetPieceSize() else "beyond the model"
        if right.boundary_V[index] and (base or not table.boundary_V[index]):
            return f"Id {index} ({piece}) is a mark, not text, and is counted as {base} bytes."
        if not right.boundary_V[index] and model.processor.IsByte(index) and base != 1:
            return f"Byte piece {index} ({piece}) is counted as {base} bytes; it is one."
        if right.lead_V[index] and table.lead_V[index] and base == expected + 1:
            return f"The leading space of piece {index} ({piece}) is counted twice."
        if right.lead_V[index] and not table.lead_V[index]:
            return f"The space mark of piece {index} ({piece}) is not taken for a space, and {base} bytes are counted."
        if not right.boundary_V[index] and (
            base != expected or table.lead_V[index] != right.lead_V[index] or table.boundary_V[index]
        ):
            return f"Piece {index} ({piece}) is counted as {base} bytes; it has {expected}."
    return ""


def _text(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise EvaluationError(f"The challenge's text is UTF-8; byte {error.start} of a document is not.") from None
