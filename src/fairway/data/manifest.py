"""From a source of documents to a sealed folder of tokens, and the account of where every byte went.

A document belongs to validation where its SHA-256 lies below a threshold, to training otherwise, so no text
can stand in both. The threshold is the one at which validation holds the wished share of all bytes. The
tokenizer is trained on training text alone. The folder holds token shards of both splits, the raw validation
text, an index of (digest, bytes, tokens) per document, the tokenizer, and the manifest, which is written
last.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fairway.core import storage
from fairway.core.errors import DataError, StorageError
from fairway.data.build import INDEX, TOKENIZER_FILE, VALIDATION_FILE, DataConfig, Split, build, index_name
from fairway.data.parts import Tokenizer, load_tokenizer
from fairway.data.shards import TokenStream, open_shard
from fairway.data.spool import digest_of

VERSION = 1


class Count(BaseModel):
    """A number of documents and their raw bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    documents: int = Field(ge=0)
    bytes: int = Field(ge=0)


class SplitRecord(Count):
    """What one split holds. `tokens` includes one boundary a document."""

    tokens: int = Field(ge=0)
    shards: tuple[str, ...]


class TokenizerRecord(BaseModel):
    """Which tokenizer made the tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    sha256: str
    vocabulary: int = Field(ge=2)
    boundary: int = Field(ge=0)
    lossless: bool


class Manifest(BaseModel):
    """The account of a prepared folder; `read` checks it against every file before anything uses it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: Path = Field(exclude=True)
    version: Literal[1] = VERSION
    fingerprint: str
    """Of the `DataConfig` that made it."""
    config: dict[str, Any]
    read_from_source: Count
    dropped: dict[str, Count]
    """By reason: `empty`, `duplicate`, `beyond_max_bytes`."""
    train: SplitRecord
    validation: SplitRecord
    threshold: str
    """Hex; the documents whose digest lies below it are validation."""
    shared_runs: float
    """Share of the validation text's runs of 50 bytes that stand in the training text too."""
    lossy_documents: int = Field(ge=0)
    """Documents that do not survive encoding and decoding; always 0 for a lossless tokenizer."""
    tokenizer_record: TokenizerRecord

    @classmethod
    def read(cls, folder: Path, *, check: bool = True) -> Self:
        """The manifest of a folder after checking sizes, counts, the split and, with `check`, every SHA-256.

        Raises `DataError` naming the file at fault.
        """
        folder = Path(folder)
        try:
            sealed = storage.unseal(folder, check=check)
        except StorageError as error:
            raise DataError(str(error)) from None
        files = sealed.pop("files")
        try:
            manifest = cls.model_validate({"folder": folder, **sealed})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{folder / storage.MANIFEST} cannot be used: {where}: {first['msg']}.") from None
        manifest._check_counts(files)
        for split in get_args(Split):
            manifest._check_split(split)
        return manifest

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens."""
        tokenizer = load_tokenizer(self.tokenizer_record.kind, (self.folder / TOKENIZER_FILE).read_bytes())
        record = self.tokenizer_record
        if (tokenizer.vocabulary, tokenizer.boundary) != (record.vocabulary, record.boundary):
            raise DataError(f"{self.folder / TOKENIZER_FILE} is not the tokenizer that the manifest describes.")
        return tokenizer

    def tokens(self, split: Split) -> TokenStream:
        """All tokens of a split through memory maps; raises `DataError` naming a shard that cannot be
        trusted.
        """
        record = self.of(split)
        stream = TokenStream(
            [open_shard(self.folder / name, self.tokenizer_record.vocabulary) for name in record.shards]
        )
        if len(stream) != record.tokens:
            raise DataError(f"The {split} shards in {self.folder} hold {len(stream)} tokens, not {record.tokens}.")
        return stream

    def validation_documents(self) -> list[bytes]:
        """The raw bytes of every validation document; each is compared with its digest."""
        path = self.folder / VALIDATION_FILE
        data = path.read_bytes()
        texts, start = [], 0
        for row in self.index("validation"):
            text = data[start : start + int(row["bytes"])]
            if digest_of(text) != bytes(row["digest"]):
                raise DataError(f"{path} is damaged: the document at byte {start} does not match its digest.")
            texts.append(text)
            start += len(text)
        return texts

    def of(self, split: Split) -> SplitRecord:
        """The record of one split."""
        return self.train if split == "train" else self.validation

    def index(self, split: Split) -> np.ndarray:
        """Digest, raw bytes and tokens (boundary included) of each document, in the order of the tokens."""
        path = self.folder / index_name(split)
        data = path.read_bytes()
        if len(data) != INDEX.itemsize * self.of(split).documents:
            raise DataError(f"{path} has {len(data)} bytes; {self.of(split).documents} documents do not fit.")
        return np.frombuffer(data, INDEX)

    def _check_counts(self, files: dict[str, Any]) -> None:
        kept = [self.train, self.validation, *self.dropped.values()]
        for unit in ("documents", "bytes"):
            total, read = sum(getattr(part, unit) for part in kept), getattr(self.read_from_source, unit)
            if total != read:
                raise DataError(f"{self.folder / storage.MANIFEST} accounts for {total} of {read} {unit}.")
        needed = [TOKENIZER_FILE, VALIDATION_FILE, index_name("train"), index_name("validation")]
        for name in [*needed, *self.train.shards, *self.validation.shards]:
            if name not in files:
                raise DataError(f"{self.folder / name} is not in the manifest's list of files.")
        if files[TOKENIZER_FILE]["sha256"] != self.tokenizer_record.sha256:
            raise DataError(f"{self.folder / TOKENIZER_FILE} is not the tokenizer that the manifest describes.")

    def _check_split(self, split: Split) -> None:
        path, record, index = self.folder / index_name(split), self.of(split), self.index(split)
        for unit in ("bytes", "tokens"):
            if int(index[unit].sum()) != getattr(record, unit):
                raise DataError(f"{path} adds up to {int(index[unit].sum())} {unit}; the manifest says otherwise.")
        digests = index["digest"].tolist()
        threshold = bytes.fromhex(self.threshold)
        if any((digest < threshold) != (split == "validation") for digest in digests):
            raise DataError(f"{path} names a document that belongs to the other split.")
        if len(set(digests)) != len(digests):
            raise DataError(f"{path} names a document twice.")


def prepare(
    config: DataConfig,
    folder: Path,
    progress: Callable[[float, str], None] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Manifest:
    """Reads the source once and writes the sealed folder, replacing an earlier one; `progress` gets the share
    done.

    Raises `DataError` or `TokenizerError` for text that cannot be used; nothing is left behind then. The same
    text and settings give the same bytes in every file. `tokenizer` saves training one: it must be what these settings
    would give.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / storage.MANIFEST).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} holds something else than prepared data; give a new or empty folder.")
    record: dict[str, Any] = {}

    def fill(temporary: Path) -> None:
        record.update(build(config, temporary, progress or _silent, tokenizer))

    storage.replace_folder(folder, fill, record)
    return Manifest.read(folder, check=False)


def _silent(share: float, task: str) -> None:
    """Progress that nobody watches."""
