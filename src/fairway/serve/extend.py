"""A trained model at a longer context: the same weights, rotary positions scaled by one of the techniques for it."""

from dataclasses import replace
from pathlib import Path

from fairway.artifact import format as artifact
from fairway.core.errors import ArtifactError, ConfigError
from fairway.core.storage import sha256
from fairway.model.lm import ModelConfig
from fairway.model.weights import fill
from fairway.serve.model import Model


def at_context(model: Model, context: int, kind: str) -> Model:
    """The model with the same weights at `context` tokens, its positions those of `ModelConfig.extended`."""
    config = model.network.config.extended(context, kind)
    network = config.skeleton(model.network.vocabulary).to_empty(device="cpu")
    fill(network, {**dict(model.network.named_parameters()), **dict(model.network.named_buffers())})
    network = network.to(model.network.device).eval().requires_grad_(False)
    return Model(network, model.tokenizer, model.notes, steps=model.steps)


def extend(path: Path, context: int, kind: str, out: Path) -> int:
    """Writes the artifact at `path` with longer positions to `out`; returns the bytes of the new file.

    Its weights are the same bytes; its notes name the file it comes from. Raises `ConfigError` where positions cannot
    be extended so.
    """
    if path.resolve() == out.resolve():
        raise ConfigError(f"{out} would be written over itself; another name would work.")
    contents = artifact.read(path)
    try:
        config = ModelConfig.read(contents.model, origin="model")
    except ConfigError as error:
        raise ArtifactError(f"{path} cannot be used: {error}") from None
    longer = config.extended(context, kind)
    notes = {**contents.notes, "extended_from": sha256(path), "extended_context": config.context}
    return artifact.write(out, replace(contents, model=longer.plain(), notes=notes))
