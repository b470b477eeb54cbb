"""Small models for laws: short, narrow, and with room for every technique."""

from typing import Any

import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.parts import Context, State, Stateful
from laws import building
from laws.state import Run, context_piece

VOCABULARY = 61
SMALL: dict[str, dict[str, Any]] = {
    "factored": {"inner": 16},
    "bigram_hash": {"rows": 32, "inner": 8},
    "mixture_of_depths": {"capacity": 0.5},
    "recurrent": {"layers": 3},
    "act": {"layers": 3},
    "shared": {"layers": 2},
    "skip": {"layers": 3},
    "plain": {"layers": 2},
    "moe": {"experts": 4},
}
"""Settings that make a technique small enough for a test of seconds; default settings otherwise."""


def technique(kind: str, **settings: Any) -> dict[str, Any]:
    """A technique of any slot, small."""
    layers = {"mixture_of_depths": {"layers": 2}}.get(kind, {})
    return {"kind": kind, **SMALL.get(kind, {}), **layers, **settings}


def model_config(**parts: Any) -> ModelConfig:
    """A model of width 48 and two layers, trained at 32 tokens."""
    return ModelConfig.read({"width": 48, "context": 32, "depth": technique("plain"), **parts})


def built_model(config: ModelConfig, seed: int = 0, *, awake: bool = True) -> LanguageModel:
    """The model in float64 with every branch alive."""
    return building.built(lambda: LanguageModel(config, VOCABULARY), seed, awake=awake)


def opened_model(config: ModelConfig, *, awake: bool = True) -> Any:
    """The same model, for a test that names what is inside it."""
    return built_model(config, awake=awake)


def sample_tokens(length: int = 17, batch: int = 2, seed: int = 0) -> Tensor:
    """Random ids (B, T)."""
    return torch.randint(0, VOCABULARY, (batch, length), generator=generator(seed, "tokens"))


def model_runner(model: LanguageModel, tokens_BT: Tensor, starts_BT: Tensor | None = None) -> Run:
    """Runs a model's hidden vectors on pieces of a sequence."""

    def run(piece: slice, state: State | None) -> tuple[Tensor, State]:
        starts = None if starts_BT is None else starts_BT[:, piece]
        output = model(tokens_BT[:, piece], state, starts_BT=starts)
        return output.hidden_BTD, output.state

    return run


def embedding_runner(part: Stateful, tokens_BT: Tensor, context: Context) -> Run:
    """Runs an embedding on pieces of a sequence."""

    def run(piece: slice, state: State | None) -> tuple[Tensor, State]:
        return part(tokens_BT[:, piece], state, context_piece(context, piece))

    return run
