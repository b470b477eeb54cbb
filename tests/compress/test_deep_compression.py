"""Prune, share, Huffman: decoded bit by bit, every byte counted from a real file, codes as short as any can
be.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.examples import model, text
from fairway.artifact.coder.huffman import canonical_codes, code_lengths
from fairway.artifact.format import read, restore, unpack
from fairway.artifact.packing import codebook, sparse
from fairway.compress.fit import compress_model
from fairway.compress.plan import CompressConfig


@pytest.mark.parametrize("index_bits", [1, 2, 4, 8])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_relative_indices_with_fillers_come_back_bit_by_bit(index_bits: int, density: float) -> None:
    random = np.random.default_rng(0)
    codes = (random.integers(1, 6, (30, 40)) * (random.random((30, 40)) < density)).astype(np.int32)
    centres = torch.tensor([-0.5, -0.1, 0.2, 0.4, 0.9])
    bits, exponent = codebook.write_centroids(centres)
    packed = sparse.pack(codes, bits, exponent, (30, 40), index_bits)
    expected = torch.cat((torch.zeros(1), codebook.read_centroids(bits, exponent)))[
        torch.from_numpy(codes.astype(np.int64))
    ]
    assert torch.equal(unpack("w", packed), expected)
    assert packed.arrays["gaps"].max(initial=0) < 1 << index_bits
    fillers = int((packed.arrays["codes"] == 0).sum())
    places = np.flatnonzero(codes)
    gaps = np.diff(places, prepend=-1) - 1
    assert fillers == int((gaps // (1 << index_bits)).sum())


def test_a_filler_stands_after_every_longest_run_of_zeros() -> None:
    codes = np.zeros((1, 12), np.int32)
    codes[0, 9] = 1
    packed = sparse.pack(codes, np.array([15360], np.int32), 0, (1, 12), 2)
    assert packed.arrays["gaps"].tolist() == [3, 3, 1]
    assert packed.arrays["codes"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("seed", range(6))
def test_huffman_codes_are_the_shortest_of_all_prefix_codes(seed: int) -> None:
    """Brute force over all code lengths that a prefix code may have, for up to six symbols."""
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 7))
    counts = random.integers(1, 50, count).tolist()
    lengths = code_lengths(counts)
    best = (
        min(
            sum(c * n for c, n in zip(counts, candidate, strict=True))
            for candidate in product(range(1, count), repeat=count)
            if sum(2.0**-n for n in candidate) <= 1
        )
        if count > 2
        else sum(counts)
    )
    assert sum(c * n for c, n in zip(counts, lengths, strict=True)) == best


def test_huffman_codes_are_canonical_and_free_of_prefixes() -> None:
    counts = [40, 30, 12, 10, 5, 2, 1]
    lengths = code_lengths(counts)
    words = [f"{code:0{length}b}" for code, length in zip(canonical_codes(lengths), lengths, strict=True)]
    assert not any(a != b and b.startswith(a) for a in words for b in words)
    assert sorted(words, key=lambda w: (len(w), w)) == sorted(words, key=lambda w: (len(w), int(w, 2)))
    share = np.array(counts) / sum(counts)
    mean, entropy = float(share @ lengths), float(-(share * np.log2(share)).sum())
    assert entropy <= mean < entropy + 1


def test_very_skewed_frequencies_get_codes_of_at_most_16_bits() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = code_lengths(fibonacci)
    assert max(lengths) <= 16
    assert sum(2.0**-length for length in lengths) == 1.0


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_the_whole_pipeline_decodes_from_its_file_with_every_byte_counted(layout: str, tmp_path: Path) -> None:
    subject = model(width=64)
    path = tmp_path / "model.fwy"
    settings = {
        "prune": {"kind": "magnitude", "sparsity": 0.8},
        "quantize": {"kind": "kmeans", "clusters": 32, "layout": layout},
        "coder": "huffman",
    }
    fit = compress_model(subject, "byte", b"", CompressConfig.read(settings), 10**6, path, {}, text())
    tensors = restore(read(path))
    assert fit.bytes == path.stat().st_size
    parts = fit.report.header + fit.report.tokenizer + sum(tensor.bytes for tensor in fit.report.tensors)
    assert parts == pytest.approx(fit.bytes)
    for tensor in fit.report.tensors:
        if tensor.kind in ("codebook", "sparse") and "depth" in tensor.name:
            assert tensor.zeros == pytest.approx(0.8, abs=0.01)
            values = tensors[tensor.name]
            assert len(values.unique()) <= 33
    assert fit.bytes < 0.5 * sum(parameter.numel() for parameter in subject.parameters())
