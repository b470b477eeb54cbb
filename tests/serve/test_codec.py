"""Compression with a model: any bytes come back, at the size that the score says."""

import math

import numpy as np
import pytest
import torch
from constriction import stream  # pyrefly: ignore[missing-module-attribute]
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.core.errors import ConfigError, DataError
from fairway.serve import codec
from fairway.serve.model import Model
from serve.tiny import TEXTS, random_model


@settings(max_examples=30)
@given(st.binary(max_size=80))
def test_any_bytes_come_back(data: bytes) -> None:
    model = _MODEL
    assert model.decompress(model.compress(data)) == data


_MODEL = random_model()


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("documents", [TEXTS, [], [b""], [b"", b""], [b"hello"] * 200])
def test_documents_come_back(model: Model, documents: list[bytes], precision: codec.Precision) -> None:
    coder = model.coder(precision, window=12, stride=5)
    assert codec.decompress(coder, codec.compress(coder, documents).data) == documents


def test_the_size_is_that_of_the_score(model: Model) -> None:
    coder = model.coder("fp64")
    compressed = codec.compress(coder, TEXTS * 8)
    assert compressed.nats == pytest.approx(model.score(TEXTS * 8).nats, rel=1e-6)
    by_score = compressed.nats / math.log(2) / 8
    assert by_score - 1 <= len(compressed.data) <= 1.001 * by_score + 64


def test_text_longer_than_a_segment_comes_back(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairway.serve.model.SEGMENT", 100)
    data = np.random.default_rng(0).integers(97, 100, 450).astype(np.uint8).tobytes()
    assert model.decompress(model.compress(data, precision="fp32")) == data


def test_a_flipped_bit_anywhere_is_noticed_before_anything_is_decoded(model: Model) -> None:
    coded = model.compress(b"hello world, hello wind")
    for place in range(8 * len(coded)):
        damaged = bytearray(coded)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(DataError, match=r"checksum|does not begin"):
            codec.settings(bytes(damaged))


def test_cut_extended_and_foreign_files_are_refused(model: Model) -> None:
    coded = model.compress(b"hello world, hello wind")
    for wrong in [*(coded[:size] for size in range(len(coded))), coded + b"\0", coded[:4] + coded, b"PK\x03\x04" * 20]:
        with pytest.raises(DataError):
            model.decompress(wrong)


def test_a_file_that_claims_more_than_it_can_hold_is_refused(model: Model) -> None:
    coder = model.coder("fp64")
    header = codec._Header("fp64", 1, coder.policy, bytes(6), bytes(2), bytes(8), 2**40, 2**41)
    with pytest.raises(DataError, match="claims"):
        model.decompress(header.sealed(b"abcd"))


def test_text_that_decodes_to_something_else_is_refused(model: Model) -> None:
    coder = model.coder("fp64")
    tokens = len(model.tokenizer.encode(b"hello world")) + 1
    coded = codec.compress(coder, [b"hello world"]).data
    header = codec._Header("fp64", 1, coder.policy, bytes(6), bytes(2), bytes(8), 1, tokens)
    with pytest.raises(DataError, match="cannot be restored"):
        codec.decompress(coder, header.sealed(coded[-8:]))


def test_another_model_is_told_apart(model: Model) -> None:
    one = Model(model.network, model.tokenizer, sha256="ab" * 32)
    other = Model(model.network, model.tokenizer, sha256="cd" * 32)
    with pytest.raises(DataError, match="another model"):
        other.decompress(one.compress(b"hello"))


def test_weights_are_powers_of_two_of_the_logits() -> None:
    logits = torch.tensor([[0.0, -math.log(2), -10 * math.log(2), -1000.0, 0.0]])
    assert codec.weights(logits).tolist() == [[2**24, 2**23, 2**14, 0, 2**24]]


def test_rounding_to_the_grid_costs_almost_nothing() -> None:
    logits = torch.randn(200, 300, generator=torch.Generator().manual_seed(0)).double() * 3
    weights = torch.from_numpy(codec.weights(logits))
    p, q = logits.softmax(-1), weights / weights.sum(-1, keepdim=True)
    lost = (p * (p / q.clamp_min(2.0**-24)).log2()).sum(-1)
    assert float(lost.mean()) < 1e-4


def test_weights_do_not_change_with_rounding_noise() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 300, generator=random, dtype=torch.float64) * 3
    noise = 1e-13 * torch.randn(200, 300, generator=random, dtype=torch.float64)
    assert np.array_equal(codec.weights(logits), codec.weights(logits + noise))


def test_the_range_coder_can_code_what_has_no_weight() -> None:
    family = stream.model.Categorical(perfect=False)
    encoder = stream.queue.RangeEncoder()
    weights = codec.weights(torch.tensor([[0.0, -1e9, 0.0]]))
    encoder.encode(np.array([1], np.int32), family, weights)
    decoder = stream.queue.RangeDecoder(encoder.get_compressed())
    assert decoder.decode(family, weights).tolist() == [1]


def test_a_stride_beyond_the_window_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="stride"):
        model.coder("fp32", stride=13)
