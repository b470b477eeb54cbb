"""Saved weights put back into a model."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fairway.core.errors import ConfigError


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies saved tensors into the parameters and buffers of the same names; each must be there with its shape."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if own.keys() != tensors.keys():
        raise ConfigError(
            f"These weights belong to another model: they differ in {sorted(own.keys() ^ tensors.keys())[:4]}."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                raise ConfigError(
                    f"{name} has the shape {tuple(tensors[name].shape)}; {tuple(tensor.shape)} is needed."
                )
            tensor.copy_(tensors[name])
