"""SentencePiece models as tables of exact bytes. The one place that imports the `sentencepiece` package
(extra).
"""

from dataclasses import dataclass
from typing import Any

from fairway.core.errors import TokenizerError
from fairway.data.words import native

try:
    import sentencepiece
except ImportError:
    sentencepiece = None

LARGEST_MODEL = 64_000_000
SPACE_MARK = "\u2581"


@dataclass(frozen=True)
class Model:
    """A loaded model; `pieces[id]` is the bytes an id stands for, with the space mark as a blank."""

    data: bytes
    processor: Any
    pieces: tuple[bytes, ...]
    byte_ids: tuple[int, ...] | None
    """Ids of the 256 single bytes, where the model has them."""
    prefixed: bool
    """Whether encoding puts a blank before the text, which decoding must take away again."""

    @property
    def bos(self) -> int:
        """Id of the begin-of-sequence symbol, or -1."""
        return self.processor.bos_id()


def read_model(data: bytes) -> Model:
    """Raises `TokenizerError` where the bytes are no model or the package is missing."""
    if sentencepiece is None:
        raise TokenizerError(
            "SentencePiece models need the sentencepiece package: pip install 'fairway[sentencepiece]'."
        )
    if not 0 < len(data) <= LARGEST_MODEL:
        raise TokenizerError(
            f"A SentencePiece model of {len(data):,} bytes is refused; 1 to {LARGEST_MODEL:,} would work."
        )
    with native("read this SentencePiece model"):
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(data)
        size = processor.GetPieceSize()
        singles = {}
        pieces = []
        for token in range(size):
            piece = processor.IdToPiece(token)
            if processor.IsByte(token):
                singles[int(piece[3:5], 16)] = token
                pieces.append(bytes([int(piece[3:5], 16)]))
            elif processor.IsControl(token) or processor.IsUnused(token):
                pieces.append(b"")
            elif processor.IsUnknown(token):
                pieces.append("\ufffd".encode())
            else:
                pieces.append(piece.replace(SPACE_MARK, " ").encode())
        probe = processor.EncodeAsPieces("a")
    byte_ids = tuple(singles[byte] for byte in range(256)) if len(singles) == 256 else None
    return Model(data, processor, tuple(pieces), byte_ids, bool(probe) and probe[0].startswith(SPACE_MARK))
