"""Artifacts come back as they went in, are as small as they can be, and any change to a byte is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fairway.artifact import format as artifact
from fairway.artifact.format import (
    Contents,
    encode,
    estimated_bytes,
    read,
    read_bytes,
    read_plan,
    restore,
    write,
)
from fairway.artifact.packing import raw, rows
from fairway.artifact.parts import Packed
from fairway.artifact.report import report
from fairway.artifact.table import Histogram
from fairway.core.errors import ArtifactError

MODEL = {"width": 48, "context": 64, "head": {"softcap": 30.0, "tied": True}}


def contents(rows_of_weights: int = 48, coder: str = "ans", tokenizer: bytes = b"merge " * 40) -> Contents:
    random = np.random.default_rng(5)
    tensors: dict[str, Packed] = {}
    for index, scale in enumerate((2.5, 2.5, 6.0)):
        codes = np.rint(random.normal(size=(rows_of_weights, 48)) * scale).astype(np.int32)
        name = f"depth.blocks.{index}.mixer.query.weight"
        tensors[name] = rows.pack(codes, random.integers(-40, -30, rows_of_weights), (rows_of_weights, 48))
    tensors["norm.gain_D"] = raw.pack(torch.randn(48, generator=torch.Generator().manual_seed(0)), "float16")
    tensors["scale"] = raw.pack(torch.tensor(1.25), "float32")
    return Contents(MODEL, 256, "bpe", tokenizer, tensors, {"fairway": "0.1.0", "seconds_train": 12.5}, coder)


def assert_equal(left: Contents, right: Contents) -> None:
    for name in ("model", "vocabulary", "tokenizer_kind", "tokenizer", "notes", "coder"):
        assert getattr(left, name) == getattr(right, name)
    assert list(left.tensors) == list(right.tensors)
    for name, packed in left.tensors.items():
        other = right.tensors[name]
        assert (packed.kind, packed.shape, packed.settings) == (other.kind, other.shape, other.settings)
        assert all(np.array_equal(array, other.arrays[key]) for key, array in packed.arrays.items())


def test_an_artifact_comes_back_bit_by_bit(tmp_path: Path) -> None:
    original = contents()
    size = write(tmp_path / "model.fwy", original)
    assert size == (tmp_path / "model.fwy").stat().st_size
    assert_equal(read(tmp_path / "model.fwy"), original)


@pytest.mark.parametrize("coder", ["ans", "range", "huffman"])
def test_saving_what_was_loaded_gives_the_same_bytes(coder: str) -> None:
    data = encode(contents(coder=coder))
    assert encode(read_bytes(data)) == data


@pytest.mark.parametrize("tokenizer", [b"", b"x", bytes(range(256)) * 3, b"token " * 5000])
def test_tokenizers_of_any_bytes_come_back_in_no_more_bytes_than_they_have(tokenizer: bytes) -> None:
    data = encode(contents(tokenizer=tokenizer))
    assert read_bytes(data).tokenizer == tokenizer
    assert read_plan(data)[0].tokenizer_bytes <= len(tokenizer)


def test_restored_tensors_are_step_times_code() -> None:
    original = contents()
    tensors = restore(read_bytes(encode(original)))
    packed = original.tensors["depth.blocks.0.mixer.query.weight"]
    exponents = packed.arrays["steps"].astype(float) + packed.settings["base"]
    expected = 2.0 ** (exponents / packed.settings["resolution"])[:, None] * packed.arrays["codes"].reshape(48, 48)
    found = tensors["depth.blocks.0.mixer.query.weight"].double().numpy()
    assert np.allclose(found, expected, rtol=1e-6, atol=0)
    assert tensors["scale"].shape == ()
    assert float(tensors["scale"]) == 1.25


def test_the_file_is_within_a_tenth_of_a_per_cent_and_tables_of_the_entropy() -> None:
    large = contents(3000)
    entropy = sum(Histogram.of(a).entropy() for packed in large.tensors.values() for a in packed.arrays.values()) / 8
    plan, start = read_plan(encode(large))
    assert sum(plan.streams) <= 1.001 * entropy + 250
    assert start < 350


def test_framing_sixty_tensors_takes_less_than_a_kilobyte() -> None:
    one = contents().tensors["depth.blocks.0.mixer.query.weight"]
    names = [f"depth.blocks.{layer}.{part}.weight" for layer in range(10) for part in ("a", "b", "c", "d", "e", "f")]
    data = encode(Contents(MODEL, 256, "byte", b"", dict.fromkeys(names, one), {}))
    plan, _ = read_plan(data)
    assert len(data) - sum(plan.streams) < 1000


def test_the_estimate_made_before_coding_is_within_one_per_cent() -> None:
    for size in (48, 500, 3000):
        assert estimated_bytes(contents(size)) == pytest.approx(len(encode(contents(size))), rel=0.01)


def test_the_report_accounts_for_every_byte() -> None:
    data = encode(contents())
    found = report(data)
    assert found.total == len(data)
    assert found.header + found.tokenizer + sum(tensor.bytes for tensor in found.tensors) == pytest.approx(len(data))
    assert [tensor.name for tensor in found.tensors] == list(contents().tensors)
    assert all(0 <= tensor.zeros <= 1 and tensor.bits > 0 for tensor in found.tensors)


def test_every_flipped_bit_of_a_small_artifact_is_refused() -> None:
    data = encode(contents(4))
    for place in range(0, len(data) * 8, 7):
        broken = bytearray(data)
        broken[place // 8] ^= 1 << place % 8
        with pytest.raises(ArtifactError):
            read_bytes(bytes(broken))


def test_every_truncation_and_any_byte_added_is_refused() -> None:
    data = encode(contents(4))
    for length in range(0, len(data), 3):
        with pytest.raises(ArtifactError):
            read_bytes(data[:length])
    for extra in (b"\0", b"\xff", b"PK\x05\x06", data):
        for broken in (data + extra, extra + data, data[:-32] + extra + data[-32:]):
            with pytest.raises(ArtifactError):
                read_bytes(broken)


@pytest.mark.slow
def test_ten_thousand_random_damages_are_refused() -> None:
    data = encode(contents(64))
    random = np.random.default_rng(11)
    for trial in range(10_000):
        broken = bytearray(data)
        place = int(random.integers(len(broken)))
        if trial % 4 == 0:
            broken[place] ^= 1 << int(random.integers(8))
        elif trial % 4 == 1:
            broken = broken[:place]
        elif trial % 4 == 2:
            broken[place : place + 512] = bytes(len(broken[place : place + 512]))
        else:
            broken.insert(place, int(random.integers(256)))
        if bytes(broken) != data:
            with pytest.raises(ArtifactError):
                read_bytes(bytes(broken))


def test_the_checksum_is_the_first_thing_to_fail() -> None:
    data = bytearray(encode(contents(4)))
    data[4] = 9
    with pytest.raises(ArtifactError, match="SHA-256"):
        read_bytes(bytes(data))
    data[-32:] = hashlib.sha256(bytes(data[:-32])).digest()
    with pytest.raises(ArtifactError, match="version 9"):
        read_bytes(bytes(data))


def test_errors_name_the_file_and_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="There is no artifact"):
        read(tmp_path / "missing.fwy")
    foreign = tmp_path / "foreign.fwy"
    foreign.write_bytes(b"PK\x03\x04 this is a zip")
    with pytest.raises(ArtifactError, match=r"foreign\.fwy.*does not begin like an artifact"):
        read(foreign)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read(tmp_path)


def test_a_tokenizer_or_notes_too_large_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    original = contents()
    path = tmp_path / "model.fwy"
    huge = Contents(MODEL, 256, "bpe", bytes(artifact.LARGEST_TOKENIZER + 1), original.tensors)
    talkative = Contents(MODEL, 256, "bpe", b"", original.tensors, {"story": "x" * 70_000})
    for bad in (huge, talkative):
        with pytest.raises(ArtifactError):
            write(path, bad)
    assert not path.exists()
