"""Decoding by the native step: the logits, the windows and the greedy text of PyTorch, at every instruction level."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from fairway.artifact.format import Contents, write
from fairway.artifact.packing import raw, rows
from fairway.artifact.steps import nearest_exponents
from fairway.core import log
from fairway.core.native import LEVELS
from fairway.model.lm import ModelConfig
from fairway.model.parts import parameter_roles
from fairway.ops.matvec.native import FLOAT, INT4, INT8, INT16
from fairway.serve.engine import Session
from fairway.serve.load import load
from fairway.serve.model import Model
from fairway.serve.native_session import NativeSession, compiled_step
from fairway.serve.window import Policy
from laws.levels import EVERY_LEVEL, at_level
from serve.tiny import integers, random_model, random_network

CONFIG = ModelConfig.read(
    {"width": 48, "context": 64, "depth": 3, "mixer": {"kind": "attention", "heads": 3}, "ffn": "swiglu"}
)
LOGIT_ERROR = 5e-5
"""Largest difference of a logit from PyTorch's in float32."""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("largest", "kind"), [(7, INT4), (100, INT8), (2000, INT16), (0, FLOAT)])
def test_three_hundred_tokens_have_the_logits_of_pytorch(largest: int, kind: int, level: str) -> None:
    network = random_network(50, config=CONFIG)
    steps = integers(network, largest) if largest else {}
    policy = Policy(64, 32)
    with at_level(level):
        compiled = compiled_step(network, policy.length, steps)
        assert compiled is not None
        assert {one.format for one in compiled.matrices} == {kind}
        ours, theirs = NativeSession(compiled, policy, [0]), Session(network, policy, [0])
        for _ in range(300):
            seen, wanted = ours.logits(), theirs.logits()
            assert float((seen - wanted).abs().max()) < LOGIT_ERROR
            assert int(seen.argmax()) == int(wanted.argmax())
            token = int(wanted.topk(3).indices[len(ours.tokens) % 3])
            ours.push(token)
            theirs.push(token)


@pytest.mark.parametrize("stride", [1, 4, 12])
@pytest.mark.parametrize("prompt", [1, 5, 12, 13, 40])
def test_windows_are_those_of_scoring(stride: int, prompt: int) -> None:
    network, policy = random_network(263), Policy(12, stride)
    tokens = np.random.default_rng(0).integers(0, 263, prompt).tolist()
    with at_level("portable"):
        compiled = compiled_step(network, 12, {})
        assert compiled is not None
        session = NativeSession(compiled, policy, tokens)
        for _ in range(40):
            logits = session.logits()
            start = policy.window(len(session.tokens) - 1).start
            wanted = network.logits(network(torch.tensor([session.tokens[start:]])).hidden_BTD)[0, -1]
            assert torch.allclose(logits, wanted, atol=LOGIT_ERROR)
            session.push(int(logits.argmax()))


def test_greedy_text_is_the_same_on_every_path() -> None:
    texts = set()
    for level in EVERY_LEVEL:
        try:
            with at_level(level):
                texts.add("".join(random_model().generate("hello w", tokens=80, temperature=0)))
        except pytest.skip.Exception:
            continue
    assert len(texts) == 1
    assert texts != {""}


def test_an_artifact_decodes_on_its_own_integers(tmp_path: Path) -> None:
    model = random_model()
    network, tokenizer = model.network, model.tokenizer
    steps = integers(network, 100)
    tensors = {}
    for name in parameter_roles(network):
        weight = dict(network.named_parameters())[name]
        if name in steps:
            code = (weight / steps[name][:, None]).round().numpy().astype(np.int32)
            exponents = nearest_exponents(steps[name].numpy())
            tensors[name] = rows.pack(code, exponents, tuple(weight.shape))
        else:
            tensors[name] = raw.pack(weight, "float32")
    path = tmp_path / "model.fwy"
    write(path, Contents(network.config.plain(), tokenizer.vocabulary, tokenizer.kind, tokenizer.save(), tensors))
    loaded = load(path)
    with at_level("portable"):
        session = loaded.session([0])
        assert isinstance(session, NativeSession)
        assert {one.format for one in session.compiled.matrices} == {INT8}
        assert torch.allclose(session.logits(), model.logits([0])[-1], atol=LOGIT_ERROR)


def test_changed_weights_are_noticed() -> None:
    model = random_model()
    with at_level("portable"):
        before = model.session([0]).logits().clone()
        with torch.no_grad():
            next(model.network.parameters()).mul_(0.5)
        after = model.session([0]).logits()
        assert not torch.allclose(before, after, atol=1e-3)
        assert torch.allclose(after, model.logits([0])[-1], atol=LOGIT_ERROR)


def test_without_kernels_and_for_unknown_parts_pytorch_decodes(caplog: pytest.LogCaptureFixture) -> None:
    with at_level(None):
        assert isinstance(random_model().session([0]), Session)
    config = ModelConfig.read({"width": 16, "context": 12, "depth": 2, "mixer": "gla"})
    model = random_model()
    other = Model(random_network(model.tokenizer.vocabulary, config=config), model.tokenizer)
    log.say_once.cache_clear()
    with at_level("portable"), caplog.at_level(logging.INFO, "fairway"):
        for _ in range(2):
            assert isinstance(other.session([0]), Session)
        assert "".join(other.generate("hello", tokens=5)) is not None
    notices = [record.message for record in caplog.records if "decodes through PyTorch" in record.message]
    assert len(notices) == 1
    assert "mixer is a" in notices[0]


def test_tokens_outside_the_vocabulary_are_a_broken_promise() -> None:
    model: Model = random_model()
    with at_level("portable"):
        session = model.session([model.tokenizer.vocabulary])
        with pytest.raises(AssertionError):
            session.logits()
