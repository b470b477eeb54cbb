"""A mixture of experts that begins as a trained dense model: each expert a copy of its feed-forward.

With gates that sum to one and uncut experts the new model computes at first exactly what the dense one did. Komatsuzaki
et al. 2023 (arXiv:2212.05055).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fairway.core.errors import ConfigError
from fairway.core.log import silent
from fairway.model.ffn.moe import MixtureOfExperts, upcycle
from fairway.model.lm import LanguageModel
from fairway.train.checkpoint import CHECKPOINTS, latest_checkpoint


def begin_as_dense(model: LanguageModel, folder: Path, tokenizer: str) -> None:
    """Fills a model with the newest checkpoint of a dense run; `tokenizer` is the digest of the tokenizer in use.

    Raises `ConfigError` where there is no such run, it read other tokens, or its weights do not fit.
    """
    checkpoint = latest_checkpoint(folder / CHECKPOINTS, silent)
    if checkpoint is None:
        raise ConfigError(f"train.upcycle is {folder}, which holds no checkpoint; a dense run's folder would work.")
    if checkpoint.facts.get("tokenizer") != tokenizer:
        raise ConfigError(f"The dense run {folder} has another tokenizer; one on the same prepared data would work.")
    grow(model, {**checkpoint.groups["model"], **checkpoint.groups["average"]})


def grow(model: LanguageModel, dense: Mapping[str, Tensor]) -> None:
    """Copies a dense model's tensors, by their names, into a model that differs in its feed-forwards alone."""
    experts = {name: module for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)}
    if not experts:
        raise ConfigError("train.upcycle makes experts of a dense model; model.ffn.kind=moe would work.")
    rest = {
        name: value for name, value in model.named_parameters() if not any(_inside(name, owner) for owner in experts)
    }
    maps = {f"{name}.{part}.weight" for name in experts for part in ("input", "output")}
    if unlike := dense.keys() ^ (rest.keys() | maps):
        raise ConfigError(f"The dense run's weights belong to another model: they differ in {sorted(unlike)[:4]}.")
    with torch.no_grad():
        for name, value in rest.items():
            if value.shape != dense[name].shape:
                shapes = f"{tuple(dense[name].shape)} and not {tuple(value.shape)}"
                raise ConfigError(f"{name} of the dense run has the shape {shapes}; the same sizes would work.")
            value.copy_(dense[name])
    for name, module in experts.items():
        upcycle(module, dense[f"{name}.input.weight"], dense[f"{name}.output.weight"])


def _inside(name: str, owner: str) -> bool:
    return name.startswith(f"{owner}.")
