"""Every pruner: masks that tell the truth, zeros that reach the artifact, and a model that still computes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.examples import model, text
from fairway.artifact.format import read, restore
from fairway.compress.fit import compress_model
from fairway.compress.parts import Pruned
from fairway.compress.plan import PRUNERS, CompressConfig
from fairway.model.lm import ModelConfig

KINDS = PRUNERS.kinds()
UNSTRUCTURED = ("magnitude", "wanda", "sparsegpt", "obd", "obs", "taylor")
PATTERNED = ("magnitude", "wanda", "sparsegpt", "obd", "taylor")


def prune(kind: str, **settings: Any) -> Pruned:
    config = CompressConfig.read({"prune": {"kind": kind, **settings}})
    return config.prune.build().prune(model(), text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_false_exactly_where_its_pruner_put_a_zero(kind: str) -> None:
    pruned = prune(kind)
    named = dict(pruned.model.named_parameters())
    for name, kept in pruned.kept.items():
        assert kept.dtype == torch.bool
        assert kept.shape == named[name].shape
        assert not named[name].detach()[~kept].any()
        assert float((named[name].detach()[kept] != 0).float().mean()) > 0.999 if kept.any() else True


@pytest.mark.parametrize("kind", KINDS)
def test_the_pruned_model_still_computes(kind: str) -> None:
    pruned = prune(kind).model
    with torch.no_grad():
        logits = pruned.logits(pruned(text()[0]).hidden_BTD)
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_pruning_twice_from_the_same_model_gives_the_same_result(kind: str) -> None:
    first, second = prune(kind), prune(kind)
    for (name, left), (_, right) in zip(first.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize("kind", UNSTRUCTURED)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75])
def test_the_share_removed_is_the_share_asked_for(kind: str, sparsity: float) -> None:
    kept = prune(kind, sparsity=sparsity).kept
    total = sum(mask.numel() for mask in kept.values())
    removed = sum(int((~mask).sum()) for mask in kept.values())
    assert removed == pytest.approx(sparsity * total, abs=len(kept))


@pytest.mark.parametrize("kind", PATTERNED)
@pytest.mark.parametrize(("pattern", "zeros"), [("2:4", 2), ("4:8", 4), ("1:4", 3)])
def test_patterns_hold_in_every_group_of_inputs(kind: str, pattern: str, zeros: int) -> None:
    group = int(pattern[-1])
    for name, mask in prune(kind, pattern=pattern).kept.items():
        assert bool(((~mask).view(mask.shape[0], -1, group).sum(dim=2) == zeros).all()), name


@pytest.mark.parametrize("kind", KINDS)
def test_removed_weights_are_zero_in_the_artifact(kind: str, tmp_path: Path) -> None:
    subject = model()
    before = copy.deepcopy(subject.state_dict())
    for quantize in ("rtn", "gptq"):
        config = CompressConfig.read({"prune": kind, "quantize": quantize})
        compress_model(subject, "byte", b"", config, 12_000, tmp_path / "model.fwy", {}, text())
        found = read(tmp_path / "model.fwy")
        tensors = restore(found)
        for name, kept in prune(kind).kept.items():
            assert not tensors[name][~kept].any(), name
        rebuilt = ModelConfig.read(found.model).skeleton(found.vocabulary).to_empty(device="cpu")
        rebuilt.load_state_dict(tensors, strict=True)
    assert all(torch.equal(before[name], value) for name, value in subject.state_dict().items())


def test_embeddings_are_never_pruned() -> None:
    for kind in KINDS:
        assert not any("embedding" in name for name in prune(kind).kept)
