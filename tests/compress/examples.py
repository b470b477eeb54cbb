"""Small models and layers that compression is tried on."""

from typing import Any

import torch
from torch import Tensor

from fairway.model.lm import LanguageModel, ModelConfig

MODEL = {"width": 32, "context": 24, "mixer": {"kind": "attention", "heads": 4}, "depth": 2}
VOCABULARY = 50


def model(seed: int = 1, **changes: Any) -> LanguageModel:
    """An initialised model whose output maps are not zero."""
    made = ModelConfig.read({**MODEL, **changes}).build(VOCABULARY, seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim >= 2 and not parameter.any():
                parameter.normal_(0, 0.1, generator=random)
    return made


def part(subject: LanguageModel, path: str) -> Any:
    """A module inside a model, such as `depth.blocks.0.ffn`."""
    return subject.get_submodule(path)


def text(batch: int = 12, time: int = 24, seed: int = 5) -> list[Tensor]:
    """Calibration batches."""
    random = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, VOCABULARY, (batch, time), generator=random).split(5))


def layer(rows: int = 16, columns: int = 64, tokens: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight (R, C) and correlated inputs (N, C) of very different sizes, in float64."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=random, dtype=torch.float64) / columns**0.5
    sizes = torch.randn(columns, generator=random, dtype=torch.float64).exp()
    x_NC = torch.randn(tokens, columns, generator=random, dtype=torch.float64) @ (torch.eye(columns) + mixing) * sizes
    return torch.randn(rows, columns, generator=random, dtype=torch.float64), x_NC


def hessian(x_NC: Tensor) -> Tensor:
    """`2 X X^T / n`."""
    return 2 * x_NC.T @ x_NC / len(x_NC)


def half_error(change_RC: Tensor, hessian_CC: Tensor) -> float:
    """`1/2 tr(D H D^T)`."""
    return 0.5 * float((change_RC @ hessian_CC * change_RC).sum())
