"""A mixture of experts begins as the dense model whose run it is given, or says why it cannot."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fairway.core.errors import ConfigError
from fairway.core.log import silent
from fairway.data.manifest import Manifest
from fairway.run import Recipe, Run
from fairway.train.loop import Loop
from fairway.train.upcycling import begin_as_dense, grow
from fairway.train.validation import Validation, ValidationConfig, mean_nats

MODEL = {"width": 16, "context": 16, "depth": 1, "mixer": {"kind": "attention", "heads": 2}}
EXPERTS = {"kind": "moe", "experts": 4, "top": 2, "ratio": 4.0}


@pytest.fixture
def dense(make_loop: Callable[..., Loop], manifest: Manifest) -> Loop:
    """A dense model after some steps, its checkpoint in its folder."""
    loop = make_loop(steps=6, facts={"tokenizer": manifest.tokenizer_record.sha256})
    loop.run(silent)
    return loop


def recipe(folder: Path, **model: object) -> Recipe:
    train = {"upcycle": str(folder), "batch": 4, "precision": "fp32"}
    return Recipe.read({"device": "cpu", "seed": 5, "model": {**MODEL, "ffn": EXPERTS, **model}, "train": train})


def test_experts_begin_at_the_loss_of_the_dense_model(dense: Loop, manifest: Manifest, tmp_path: Path) -> None:
    loop = Run(recipe(dense.folder), tmp_path / "experts", manifest.folder).training(manifest)
    windows = Validation(manifest, dense.meter, 16, ValidationConfig(windows=4)).windows_BT
    assert mean_nats(loop.model, windows) == pytest.approx(mean_nats(dense.model, windows), rel=1e-5)
    before = mean_nats(loop.model, windows)
    assert any("input_EJD" in name for name, _ in loop.model.named_parameters())
    batch, _ = loop.batch_at(0.0)
    loop.accumulate(batch, 0.0)
    loop.layout.update(1.0, 0.0)
    assert mean_nats(loop.model, windows) != before


def test_what_cannot_become_experts_is_refused(dense: Loop, manifest: Manifest, tmp_path: Path) -> None:
    tokenizer = manifest.tokenizer_record.sha256

    def start(folder: Path, **model: object) -> None:
        Run(recipe(folder, **model), tmp_path / "run", manifest.folder).training(manifest)

    with pytest.raises(ConfigError, match="holds no checkpoint"):
        start(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"model\.ffn\.kind=moe would work"):
        start(dense.folder, ffn="relu2")
    with pytest.raises(ConfigError, match="belong to another model"):
        start(dense.folder, depth=2)
    with pytest.raises(ConfigError, match="the same sizes would work"):
        start(dense.folder, width=32)
    with pytest.raises(ConfigError, match="A dense feed-forward of hidden width 64 was given"):
        start(dense.folder, ffn={**EXPERTS, "ratio": 2.0})
    with pytest.raises(ConfigError, match="another tokenizer"):
        begin_as_dense(dense.model, dense.folder, tokenizer[::-1])


def test_every_expert_is_the_dense_feedforward(dense: Loop, manifest: Manifest) -> None:
    grown = recipe(dense.folder).model.build(manifest.tokenizer.vocabulary, seed=3)
    grow(grown, dict(dense.model.named_parameters()))
    weights = dict(grown.named_parameters())
    own = dict(dense.model.named_parameters())
    for expert in weights["depth.blocks.0.ffn.input_EJD"]:
        assert torch.equal(expert, own["depth.blocks.0.ffn.input.weight"])
    assert torch.equal(weights["depth.blocks.0.mixer.query.weight"], own["depth.blocks.0.mixer.query.weight"])
