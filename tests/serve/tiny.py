"""Tiny models with random weights, and a tokenizer with pieces of several bytes, for the tests of three folders."""

from pathlib import Path

import torch
from torch import Tensor

from fairway.artifact.format import Contents, write
from fairway.artifact.packing.raw import pack
from fairway.artifact.steps import nearest_exponents, steps_of
from fairway.data.tokenizer.bpe import BpeTokenizer
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.parts import parameter_roles
from fairway.serve.model import Model

MERGES = [(104, 101), (108, 108), (257, 258), (259, 111), (32, 119), (195, 182)]
"""he, ll, hell, hello, ` w`, and the letter o with two dots."""

CONFIG = ModelConfig.read({"width": 16, "context": 12, "depth": 2, "mixer": {"kind": "attention", "heads": 2}})

TEXTS = [
    b"hello world, hello wind: a text that is longer than the window of twelve tokens",
    b"",
    "schöne Grüße".encode(),
    bytes(range(256)),
    b"hello",
    b"hello",
    b"\xff\xfe hello \x00 \xc3",
]
"""Whole documents: long, empty, of letters of two bytes, of every byte, twice the same, and invalid UTF-8."""


def random_network(vocabulary: int, seed: int = 0, config: ModelConfig = CONFIG) -> LanguageModel:
    """A network whose predictions differ much from token to token."""
    network = config.build(vocabulary, seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.4, generator=random)
    return network.eval().requires_grad_(False)


def integers(network: LanguageModel, largest: int) -> dict[str, Tensor]:
    """Rounds every matrix to multiples of a step for each row, as an artifact does; returns the steps."""
    steps = {}
    for name, weight in network.named_parameters():
        if weight.ndim == 2:
            exponents = nearest_exponents((weight.abs().amax(1) / largest).numpy())
            step_O = torch.from_numpy(steps_of(exponents))
            weight.copy_((weight / step_O[:, None]).round().clamp(-largest, largest) * step_O[:, None])
            steps[name] = step_O
    return steps


def random_model(seed: int = 0) -> Model:
    """A model that comes from no file."""
    tokenizer = BpeTokenizer(MERGES)
    return Model(random_network(tokenizer.vocabulary, seed), tokenizer)


def write_artifact(model: Model, path: Path) -> Path:
    """The model in an artifact file, its weights unrounded."""
    parameters = dict(model.network.named_parameters())
    tensors = {name: pack(parameters[name], "float32") for name in parameter_roles(model.network)}
    tokenizer = model.tokenizer
    config, notes = model.network.config.plain(), {"made": "in a test"}
    write(path, Contents(config, tokenizer.vocabulary, tokenizer.kind, tokenizer.save(), tensors, notes))
    return path
