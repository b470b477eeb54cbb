"""Compression with a model: any bytes come back, at the size that the score says."""

import math

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.tiny import TEXTS, random_model

from fairway.core.errors import ConfigError, DataError
from fairway.serve import codec
from fairway.serve.model import SEGMENT, Model


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


def test_text_longer_than_a_segment_comes_back() -> None:
    data = np.random.default_rng(0).integers(97, 100, SEGMENT + 11).astype(np.uint8).tobytes()
    coded = _MODEL.compress(data, precision="fp32")
    assert _MODEL.decompress(coded) == data


def test_a_flipped_bit_anywhere_is_noticed(model: Model) -> None:
    coded = model.compress(b"hello world, hello wind")
    for place in range(len(coded)):
        damaged = bytearray(coded)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(DataError):
            assert model.decompress(bytes(damaged)) == b"hello world, hello wind"
            raise DataError("Only the environment and threads may differ without harm.") if place in range(5, 20) else ""


def test_cut_and_foreign_files_are_refused(model: Model) -> None:
    coded = model.compress(b"hello world, hello wind")
    for size in range(len(coded) - 2):
        with pytest.raises(DataError):
            model.decompress(coded[:size])
    with pytest.raises(DataError, match="not a text compressed by Fairway"):
        model.decompress(b"PK\x03\x04 something else that is long enough to hold a header")


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
    family = constriction.stream.model.Categorical(perfect=False)
    encoder = constriction.stream.queue.RangeEncoder()
    weights = codec.weights(torch.tensor([[0.0, -1e9, 0.0]]))
    encoder.encode(np.array([1], np.int32), family, weights)
    decoder = constriction.stream.queue.RangeDecoder(encoder.get_compressed())
    assert decoder.decode(family, weights).tolist() == [1]


def test_a_stride_beyond_the_window_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="stride"):
        model.coder("fp32", stride=13)
