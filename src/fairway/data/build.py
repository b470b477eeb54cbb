"""Building a folder of prepared data: spool, split, train the tokenizer, encode, account for every byte."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fairway.core import storage
from fairway.core.budget import Bytes
from fairway.core.config import Config
from fairway.core.errors import DataError, TokenizerError
from fairway.core.seed import derive, numpy_generator
from fairway.data.overlap import shared_runs
from fairway.data.parts import SOURCES, TOKENIZERS, SourceConfig, Tokenizer, TokenizerConfig
from fairway.data.shards import write_shards
from fairway.data.spool import DIGEST_BYTES, Spool, spool

TOKENIZER_FILE = "tokenizer.bin"
VALIDATION_FILE = "validation.bin"
INDEX = np.dtype([("digest", f"V{DIGEST_BYTES}"), ("bytes", "<u8"), ("tokens", "<u8")])

Split = Literal["train", "validation"]
Progress = Callable[[float, str], None]

_SPOOL_FILE = "spool"
_AT_ONCE = 8_000_000


class DataConfig(Config):
    """Which text, which tokenizer, and how much is kept for validation."""

    source: Annotated[SourceConfig, SOURCES] = Field(default="stdlib", validate_default=True)
    tokenizer: Annotated[TokenizerConfig, TOKENIZERS] = Field(default="bpe", validate_default=True)
    validation_fraction: float = Field(default=0.04, gt=0, lt=1)
    """Share of the raw bytes that validation gets, in whole documents."""
    max_bytes: Bytes | None = None
    """Read no more than this much text, in the source's order."""
    tokenizer_bytes: Bytes = 64_000_000
    """Train the tokenizer on at most this much of the training text, chosen by the documents' hashes."""
    seed: int = Field(default=0, ge=0)
    """For whatever is random in training and applying the tokenizer; the split does not depend on it."""


def build(config: DataConfig, folder: Path, progress: Progress, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """Fills an empty folder from the source and gives the manifest's content, without the list of files.

    `tokenizer` is what training by these settings would give, where that is known already.
    """
    progress(0.0, "reading the text")
    spooled = spool(
        config.source.documents(),
        folder / _SPOOL_FILE,
        config.max_bytes,
        lambda kept: progress(0.1 * kept / (kept + 50_000_000), "reading the text"),
    )
    train, validation, threshold = _split(spooled, config.validation_fraction)
    if tokenizer is None:
        progress(0.1, "training the tokenizer")
        sample = _sample(spooled, train, config.tokenizer_bytes)
        tokenizer = config.tokenizer.train(spooled.texts(sample), derive(config.seed, "tokenizer"))
    saved = tokenizer.save()
    storage.write_bytes(folder / TOKENIZER_FILE, saved)
    encoder = _Encoder(config, spooled, tokenizer, folder, progress)
    splits = {"validation": encoder.encode("validation", validation), "train": encoder.encode("train", train)}
    if encoder.lossy and not config.tokenizer.accepts_loss:
        raise _loses_text(encoder, spooled, tokenizer)
    progress(0.95, "comparing the splits")
    shared = shared_runs(spooled.texts(train), spooled.texts(validation))
    storage.write_bytes(folder / VALIDATION_FILE, b"".join(spooled.texts(validation)))
    (folder / _SPOOL_FILE).unlink()
    progress(1.0, "data prepared")
    return {
        "version": 1,
        "fingerprint": config.fingerprint(),
        "config": config.plain(),
        "read_from_source": asdict(spooled.read),
        "dropped": {reason: asdict(tally) for reason, tally in spooled.dropped.items()},
        **splits,
        "threshold": threshold.hex(),
        "shared_runs": shared,
        "lossy_documents": encoder.lossy,
        "tokenizer_record": {
            "kind": tokenizer.kind,
            "sha256": hashlib.sha256(saved).hexdigest(),
            "vocabulary": tokenizer.vocabulary,
            "boundary": tokenizer.boundary,
            "lossless": tokenizer.lossless,
        },
    }


def _loses_text(encoder: "_Encoder", spooled: Spool, tokenizer: Tokenizer) -> TokenizerError:
    return TokenizerError(
        f"The {tokenizer.kind} tokenizer loses something of {encoder.lossy} of {len(spooled.digests)} documents, first "
        f"of the one with SHA-256 {spooled.digests[encoder.first_lossy].hex()}...; scores would not be of the text. "
        "Set data.tokenizer.accept_loss=true to go on all the same."
    )


def index_name(split: Split) -> str:
    """File name of a split's index."""
    return f"{split}.index"


def _split(spooled: Spool, fraction: float) -> tuple[list[int], list[int], bytes]:
    """Places of training and validation documents, and the digest that parts them."""
    order = sorted(range(len(spooled.digests)), key=spooled.digests.__getitem__)
    if len(order) < 2:
        raise DataError(
            "The source gives one document; at least two different ones are needed, one to train "
            "on and one to validate. A smaller data.source.document_bytes would cut a text file into several."
        )
    wanted, held, count = fraction * spooled.ends[-1], 0, 0
    while count < len(order) - 1 and (count == 0 or held + spooled.size(order[count]) / 2 < wanted):
        held += spooled.size(order[count])
        count += 1
    return sorted(order[count:]), sorted(order[:count]), spooled.digests[order[count]]


def _sample(spooled: Spool, places: Sequence[int], most: int) -> list[int]:
    """Documents of at most `most` bytes together, but one at least, the lowest digests first; in source
    order.
    """
    chosen, held = [], 0
    for place in sorted(places, key=spooled.digests.__getitem__):
        held += spooled.size(place)
        if chosen and held > most:
            break
        chosen.append(place)
    return sorted(chosen)


@dataclass
class _Encoder:
    """Writes the shards and the index of a split while checking that every document comes back as it was."""

    config: DataConfig
    spooled: Spool
    tokenizer: Tokenizer
    folder: Path
    progress: Progress
    lossy: int = 0
    first_lossy: int = -1
    done: int = 0
    rows: list[tuple[bytes, int, int]] = field(default_factory=list)

    def encode(self, split: Split, places: Sequence[int]) -> dict[str, Any]:
        self.rows = []
        tokenizer = self.tokenizer
        pieces = chain.from_iterable(self._tokens(split, group) for group in self._groups(places))
        shards = write_shards(self.folder, split, pieces, tokenizer.dtype, tokenizer.vocabulary)
        index = np.array(self.rows, INDEX)
        storage.write_bytes(self.folder / index_name(split), index.tobytes())
        return {
            "documents": len(index),
            "bytes": int(index["bytes"].sum()),
            "tokens": int(index["tokens"].sum()),
            "shards": shards,
        }

    def _groups(self, places: Sequence[int]) -> Iterator[list[int]]:
        group: list[int] = []
        held = 0
        for place in places:
            group.append(place)
            held += self.spooled.size(place)
            if held >= _AT_ONCE:
                yield group
                group, held = [], 0
        if group:
            yield group

    def _tokens(self, split: Split, places: list[int]) -> Iterator[np.ndarray]:
        texts = list(self.spooled.texts(places))
        start = np.array([self.tokenizer.boundary], self.tokenizer.dtype)
        for place, text, ids in zip(places, texts, self._encoded(split, places, texts), strict=True):
            self._check(place, text, ids)
            self.rows.append((self.spooled.digests[place], len(text), len(ids) + 1))
            yield np.concatenate([start, ids])
        self.done += sum(map(len, texts))
        self.progress(0.3 + 0.65 * self.done / self.spooled.ends[-1], "encoding the text")

    def _encoded(self, split: Split, places: list[int], texts: list[bytes]) -> Iterable[np.ndarray]:
        if split == "train" and self.tokenizer.random_training:
            # Named by content, so that the segmentation of a document does not depend on its neighbours.
            for place, text in zip(places, texts, strict=True):
                generator = numpy_generator(self.config.seed, "segmentation", self.spooled.digests[place].hex())
                yield self.tokenizer.encode_for_training(text, generator)
        else:
            yield from self.tokenizer.encode_all(texts)

    def _check(self, place: int, text: bytes, ids: np.ndarray) -> None:
        assert ids.dtype == self.tokenizer.dtype
        digest = self.spooled.digests[place].hex()
        if (ids == self.tokenizer.boundary).any():
            raise TokenizerError(f"The {self.tokenizer.kind} tokenizer puts its boundary inside document {digest}.")
        if self.tokenizer.decode(ids) == text:
            return
        if self.tokenizer.lossless:
            raise TokenizerError(f"The {self.tokenizer.kind} tokenizer does not give document {digest} back.")
        self.first_lossy = self.first_lossy if self.lossy else place
        self.lossy += 1
