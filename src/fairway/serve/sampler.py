"""How a next token is drawn from logits: temperature, top-k, top-p, min-p, or simply the likeliest.

`p = softmax(logits / temperature)`; top-k keeps the k likeliest tokens (Fan et al. 2018), top-p the smallest
set of them that holds p of the mass (Holtzman et al. 2019, arXiv:1904.09751), min-p those with at least that
share of the likeliest one's probability (Nguyen et al. 2024, arXiv:2407.01082), in this order; what is kept
is rescaled to sum to one. Shape key: V vocabulary.
"""

import torch
from pydantic import Field
from torch import Tensor

from fairway.core.config import Config
from fairway.core.seed import generator
from fairway.ops.sample.naive import probabilities
from fairway.ops.sample.native import sample


class SamplerConfig(Config):
    """Settings of sampling."""

    temperature: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    """Below 1 favours likely tokens; 0 always takes the likeliest."""
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int = 0


class Sampler:
    """Draws tokens one after another; the same settings and logits give the same tokens."""

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config
        self._generator = generator(config.seed, "sample")

    def __call__(self, logits_V: Tensor) -> int:
        """One token id; a tie goes to the smaller id when the temperature is 0."""
        if self.config.temperature == 0:
            return int(logits_V.argmax())
        config = self.config
        uniform = float(torch.rand((), dtype=torch.float64, generator=self._generator))
        return sample(logits_V, config.temperature, config.top_k, config.top_p, config.min_p, uniform)

    def probabilities(self, logits_V: Tensor) -> Tensor:
        """The distribution that a token is drawn from, in float64 on the CPU."""
        config = self.config
        if config.temperature == 0:
            return torch.zeros(len(logits_V), dtype=torch.float64).index_fill_(0, logits_V.argmax().cpu(), 1.0)
        return probabilities(logits_V, config.temperature, config.top_k, config.top_p, config.min_p)
