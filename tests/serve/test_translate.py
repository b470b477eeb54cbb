"""The native step of a model is the model: every part that it knows, token by token, and a reason for every other."""

from typing import Any

import pytest
import torch

from fairway.model.lm import ModelConfig
from fairway.ops.decode_step import naive
from fairway.serve.engine import Session
from fairway.serve.translate import translate
from fairway.serve.translate_block import Untranslated
from fairway.serve.window import Policy
from serve.tiny import random_network

VOCABULARY = 23
ATTENTION = {"kind": "attention", "heads": 4}
KNOWN: dict[str, dict[str, Any]] = {
    "default": {},
    "grouped queries": {"mixer": {**ATTENTION, "key_groups": 2}},
    "one key group, a window, a soft cap": {"mixer": {**ATTENTION, "key_groups": 1, "window": 5, "softcap": 3.0}},
    "two mixers in turn": {"mixer": [{**ATTENTION, "window": 3}, ATTENTION]},
    "exclusive without QK-norm": {"mixer": {**ATTENTION, "exclusive": True, "qk_norm": False}},
    **{kind: {"ffn": kind} for kind in ("relu", "gelu", "silu", "leaky_relu2", "glu", "bilinear", "reglu", "swiglu")},
    "gelu by tanh": {"ffn": {"kind": "gelu", "form": "tanh"}},
    "geglu by tanh": {"ffn": {"kind": "geglu", "form": "tanh"}},
    "rms with all settings": {"norm": {"kind": "rms", "unit_offset": True, "fraction": 0.5}},
    "rms without gain": {"norm": {"kind": "rms", "gain": False}},
    **{kind: {"norm": kind} for kind in ("layer", "dyt", "derf")},
    "partial and interleaved rotation": {
        "position": {"kind": "rope", "fraction": 0.5, "interleaved": True, "offset": 3}
    },
    **{kind: {"position": kind} for kind in ("none", "learned", "yarn", "ntk", "llama3", "position_interpolation")},
    "factored": {"embedding": {"kind": "factored", "inner": 12}},
    "factored, the table tied": {"embedding": {"kind": "factored", "inner": 12, "tie": "table"}},
    "values": {"embedding": {"kind": "value", "base": {"kind": "value", "base": "token"}}, "norm": "layer"},
    "pairs": {"embedding": {"kind": "bigram_hash", "rows": 40, "inner": 12}},
    "pairs beside values": {"embedding": {"kind": "bigram_hash", "base": {"kind": "value", "base": "token"}}},
    "smear and scale": {"embedding": {"kind": "token", "smear": True, "scale": "sqrt"}},
    "untied, scaled, uncapped": {"head": {"tied": False, "scale": 0.7, "softcap": None}},
    "untied late": {"head": {"untie_at": 0.5}},
    **{placement: {"block": {"placement": placement}} for placement in ("post", "sandwich", "deepnorm")},
    "parallel": {"block": {"parallel": True, "learned_scale": True}},
    "scaled branches": {"block": {"residual_scale": 0.6, "depth_scale": True}},
    "shared": {"depth": {"kind": "shared", "layers": 4, "groups": 2, "norms_per_layer": True}},
    "shared attention": {"depth": {"kind": "shared", "layers": 3, "share": "attention"}},
    "recurrent": {"depth": {"kind": "recurrent", "layers": 6, "prelude": 1, "coda": 1, "core": 2, "inject": "add"}},
    "recurrent, learned": {
        "depth": {"kind": "recurrent", "layers": 3, "step": "learned", "inject": "linear", "gains": True}
    },
    "more loops than trained": {"depth": {"kind": "recurrent", "layers": 2, "test_loops": 4}},
}
UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "retnet": ({"mixer": {"kind": "retnet"}}, "mixer is a RetNet|mixer is a Retention"),
    "moe": ({"ffn": {"kind": "moe"}}, "feed-forward is a"),
    "skip": ({"depth": {"kind": "skip", "layers": 4}}, "depth is a"),
    "dynamic": ({"position": {"kind": "dynamic_ntk"}}, "positions are a DynamicNtk"),
    "pointwise": ({"norm": {"kind": "pointwise"}}, "norm is a Pointwise"),
}


def config(settings: dict[str, Any]) -> ModelConfig:
    return ModelConfig.read({"width": 32, "context": 12, "depth": 2, "mixer": ATTENTION, **settings})


@pytest.mark.parametrize("settings", KNOWN.values(), ids=KNOWN)
def test_the_program_computes_what_the_model_does(settings: dict[str, Any]) -> None:
    network = random_network(VOCABULARY, config=config(settings))
    sequence = naive.Sequence(translate(network, 12, {}))
    session = Session(network.double(), Policy(12, 6), [0])
    for place in range(12):
        wanted = session.logits()
        # Frequencies of rotation are float32 in the program.
        assert torch.allclose(naive.step(sequence, session.tokens[-1]), wanted, atol=2e-5, rtol=2e-5)
        session.push((5 * place + 3) % VOCABULARY)


@pytest.mark.parametrize(("settings", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_no_instruction_computes_is_named(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(Untranslated, match=reason):
        translate(random_network(VOCABULARY, config=config(settings)), 12, {})


def test_a_model_in_float64_and_positions_beyond_the_learned_ones_are_refused() -> None:
    with pytest.raises(Untranslated, match="not float32"):
        translate(random_network(VOCABULARY).double(), 12, {})
    with pytest.raises(Untranslated, match="learned positions"):
        translate(random_network(VOCABULARY, config=config({"position": "learned"})), 13, {})
