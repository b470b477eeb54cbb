"""Text of any kind, from the file to the manifest and back, without hanging and without losing a byte."""

import resource
import time
from pathlib import Path

import pytest

from fairway.core.config import override
from fairway.data.manifest import DataConfig, Manifest, prepare

MEGABYTE = 1_000_000
RUNS = {
    "spaces": b" " * MEGABYTE,
    "one letter": b"a" * MEGABYTE,
    "carets": b"^" * MEGABYTE,
    "lines": b"\n" * MEGABYTE,
    "zeros": bytes(MEGABYTE),
    "no UTF-8": b"\xff\xfe\x80" * (MEGABYTE // 3),
    "every byte value": bytes(range(256)) * (MEGABYTE // 256),
    "every pair of bytes": b"".join(bytes((a, b)) for a in range(256) for b in range(256)),
    "combining marks": "e\u0301\u0302\u0303".encode() * (MEGABYTE // 7),
    "alternating": b"aA1 " * (MEGABYTE // 4),
}
TOKENIZERS = ("byte", "bpe", "unigram", "case")
SECONDS = 6.0


def prepared(folder: Path, tokenizer: str, texts: dict[str, bytes]) -> Manifest:
    """Prepares some texts among ordinary ones."""
    source = folder / "text"
    source.mkdir(parents=True)
    for number in range(30):
        (source / f"{number}.txt").write_text(
            f"{number} an ordinary text, with words and a number {number * 7919}. " * 6
        )
    for number, data in enumerate(texts.values()):
        (source / f"wild{number}.txt").write_bytes(data)
    settings = [f"source.path={source}", "source.kind=text", f"tokenizer.kind={tokenizer}", "validation_fraction=0.2"]
    if tokenizer != "byte":
        settings.append("tokenizer.vocabulary=400")
    return prepare(DataConfig.read(override({}, settings)), folder / "data")


def come_back(manifest: Manifest) -> bool:
    """Whether the training tokens spell every training document, by bytes and count, and validation its text."""
    tokenizer, stream = manifest.tokenizer, manifest.tokens("train")
    index = manifest.index("train")
    total = sum(len(tokenizer.decode(shard)) for shard in stream.shards)
    assert total == int(index["bytes"].sum()) == manifest.train.bytes
    texts = manifest.validation_documents()
    return all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_wild_texts_are_prepared_whole_and_soon(tokenizer: str, tmp_path: Path) -> None:
    texts = {name: data[:100_000] for name, data in RUNS.items()}
    start = time.process_time()
    manifest = prepared(tmp_path, tokenizer, texts)
    assert come_back(manifest)
    assert manifest.lossy_documents == 0
    assert time.process_time() - start < SECONDS


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_hundred_megabytes_in_one_line_are_prepared_in_bounded_memory(tokenizer: str, tmp_path: Path) -> None:
    line = (b"no line ends here, and the words go on " * 2_600_000)[: 100 * MEGABYTE]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifest = prepared(tmp_path, tokenizer, {"one line": line})
    assert come_back(manifest)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 40 * len(line)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_million_bytes_of_every_kind_are_prepared_whole(tokenizer: str, tmp_path: Path) -> None:
    assert come_back(prepared(tmp_path, tokenizer, RUNS))
