"""`fairway eie` on a really compressed artifact."""

import json
from pathlib import Path

import pytest

from fairway.compress.fit import compress_model
from fairway.compress.plan import CompressConfig
from fairway.data.tokenizer import byte
from fairway.model.lm import ModelConfig

MODEL = {"width": 32, "context": 24, "mixer": {"kind": "attention", "heads": 4}, "depth": 1}
SPARSE = {
    "prune": {"kind": "magnitude", "sparsity": 0.8},
    "quantize": {"kind": "kmeans", "clusters": 15, "layout": "sparse"},
    "coder": "huffman",
}


@pytest.fixture(scope="module")
def sparse_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte.Config().made()
    path = tmp_path_factory.mktemp("sparse") / "model.fwy"
    subject = ModelConfig.read(MODEL).build(tokenizer.vocabulary, 1)
    for parameter in subject.parameters():
        if parameter.ndim >= 2 and not parameter.any():
            parameter.data.normal_(0, 0.1)
    compress_model(subject, "byte", tokenizer.save(), CompressConfig.read(SPARSE), 10**6, path, {})
    return path


def test_the_simulator_accounts_for_every_weight_of_the_file(fairway, sparse_artifact: Path):
    found = json.loads(fairway("eie", sparse_artifact, "--elements", "8", "--json").out.splitlines()[-1])
    matrices = [tensor for tensor in found["tensors"] if "depth" in tensor["tensor"]]
    assert matrices
    for tensor in matrices:
        assert tensor["weights_kept"] == pytest.approx(0.2, abs=0.02)
        assert tensor["work_saved"] == pytest.approx(1 / tensor["weights_kept"])
        assert 0 < tensor["balance"] <= 1
    assert list(found["balance_by_fifo"].values()) == sorted(found["balance_by_fifo"].values())


def test_activations_can_come_from_a_text(fairway, sparse_artifact: Path):
    said = fairway("eie", sparse_artifact, "--text", "a few words").out
    assert "balance" in said
    assert "depth.blocks.0" in said


def test_an_artifact_without_sparse_tensors_is_refused_with_the_way_out(fairway, tiny_run: Path):
    assert "layout=sparse" in fairway.refused("eie", tiny_run)
