from pathlib import Path

import numpy as np
import pytest

from fairway.core.errors import ArtifactError
from fairway.report.anatomy import anatomy, weights_by_part


def test_every_byte_of_the_file_is_in_one_group(synthetic_run: Path):
    found = anatomy(synthetic_run / "model.fwy")
    assert found.bytes == (synthetic_run / "model.fwy").stat().st_size
    assert sum(found.groups.values()) == pytest.approx(found.bytes)
    assert {"embedding", "mixer", "ffn", "header, checksum"} <= set(found.groups)


def test_tensors_are_named_by_the_part_they_belong_to(synthetic_run: Path):
    parts = {tensor.name: tensor.part for tensor in anatomy(synthetic_run / "model.fwy").tensors}
    assert parts["embedding.weight"] == "embedding"
    assert all(part == "ffn" for name, part in parts.items() if ".ffn." in name)
    assert all(part == "mixer" for name, part in parts.items() if ".mixer." in name)


def test_bits_per_weight_are_those_of_an_eighth_of_a_deviation(synthetic_run: Path):
    """A Gaussian cut into steps of one eighth of its deviation has 0.5 log2(2 pi e) + 3 = 5.05 bits a number."""
    tensors = [tensor for tensor in anatomy(synthetic_run / "model.fwy").tensors if tensor.packing == "rows"]
    mean = sum(tensor.bits_per_weight * np.prod(tensor.shape) for tensor in tensors) / sum(
        np.prod(tensor.shape) for tensor in tensors
    )
    assert mean == pytest.approx(5.05, abs=0.06)
    assert all(tensor.entropy <= tensor.bits_per_weight + 1e-9 for tensor in tensors)
    assert all(tensor.zeros == pytest.approx(0.05, abs=0.015) for tensor in tensors)


def test_weights_keep_their_deviation_when_spread_over_their_levels(synthetic_run: Path):
    for weights in weights_by_part(synthetic_run / "model.fwy").values():
        assert weights.spread.size == weights.count
        assert weights.spread.std() == pytest.approx(weights.deviation, rel=0.02)
        assert len(np.unique(np.round(weights.spread, 9))) > weights.count / 4


def test_a_foreign_file_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("not an artifact at all, only text of some length to be sure" * 4)
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        anatomy(path)
