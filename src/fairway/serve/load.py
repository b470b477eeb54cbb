"""From an artifact file to a usable model; nothing else is needed, and nothing in the file is executed."""

from pathlib import Path

import torch

from fairway.artifact.format import Contents, read, restore
from fairway.artifact.parts import packing
from fairway.core import storage
from fairway.core.errors import ArtifactError, ConfigError, TokenizerError
from fairway.data.parts import load_tokenizer
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.serve.model import Model


def load(path: Path | str, device: torch.device | str = "cpu") -> Model:
    """The model in a `.fwy` file; raises `ArtifactError` for one that is damaged, hostile or foreign."""
    path = Path(path)
    contents = read(path)
    try:
        tokenizer = load_tokenizer(contents.tokenizer_kind, contents.tokenizer)
        network = ModelConfig.read(contents.model, origin="model").skeleton(contents.vocabulary)
    except (ConfigError, TokenizerError) as error:
        raise ArtifactError(f"{path} cannot be used: {error}") from None
    if tokenizer.vocabulary != contents.vocabulary:
        raise ArtifactError(
            f"{path} has a tokenizer of {tokenizer.vocabulary} ids and a model of {contents.vocabulary}."
        )
    filled = _filled(network, contents, path).to(device)
    steps = {name: packing(packed.kind).row_steps(packed) for name, packed in contents.tensors.items()}
    known = {name: step_O for name, step_O in steps.items() if step_O is not None}
    return Model(filled, tokenizer, contents.notes, storage.sha256(path), path, known)


def _filled(network: LanguageModel, contents: Contents, path: Path) -> LanguageModel:
    """The network with the artifact's weights; what several names share may stand under any one of them."""
    weights = restore(contents)
    network.to_empty(device="cpu")
    targets = network.state_dict(keep_vars=True)
    wrong = sorted(name for name in weights if name not in targets or targets[name].shape != weights[name].shape)
    given = {id(targets[name]) for name in weights if name in targets}
    missing = sorted(name for name, target in targets.items() if id(target) not in given)
    if wrong or missing:
        raise ArtifactError(
            f"{path} does not hold its model's weights; the first that differs is {(wrong + missing)[0]}."
        )
    with torch.no_grad():
        for name, value in weights.items():
            targets[name].copy_(value)
    return network.eval().requires_grad_(False)
