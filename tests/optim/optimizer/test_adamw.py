"""AdamW step for step against torch.optim.AdamW."""

import pytest
import torch
from torch import nn

from fairway.core.seed import generator
from fairway.model.parts import Part, Role
from fairway.optim.optimizer.adamw import Config


class Pair(Part):
    """A matrix that decays and a gain that does not."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(9, 5, generator=generator(0, "m"), dtype=torch.float64).to(dtype))
        self.gain = nn.Parameter(torch.randn(5, generator=generator(0, "g"), dtype=torch.float64).to(dtype))

    def roles(self) -> dict[str, Role]:
        return {"matrix": Role.MATRIX, "gain": Role.VECTOR}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_a_hundred_steps_equal_torch(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = Pair(dtype), Pair(dtype)
    optimizer = Config(lr=0.01, weight_decay=0.1, beta1=0.8, beta2=0.97, eps=1e-6).build(ours)
    groups = [
        {"params": [theirs.matrix], "weight_decay": 0.1},
        {"params": [theirs.gain], "weight_decay": 0.0},
    ]
    peer = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.97), eps=1e-6, foreach=False, fused=False)
    for step in range(100):
        scale = 1.0 - step / 200
        for model in (ours, theirs):
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator(1, name, step), dtype=torch.float64)
                parameter.grad = (noise + parameter.detach().double()).to(dtype)
        optimizer.step(scale, step / 100)
        for group in peer.param_groups:
            group["lr"] = 0.01 * scale
        peer.step()
        for name, value in theirs.named_parameters():
            torch.testing.assert_close(ours.get_parameter(name), value, rtol=tolerance, atol=tolerance)


def test_the_bias_correction_counts_only_the_steps_with_a_gradient() -> None:
    model = Pair(torch.float64)
    optimizer = Config(lr=0.1, weight_decay=0.0, eps=1e-12).build(model)
    model.matrix.grad = torch.ones_like(model.matrix)
    for _ in range(5):
        optimizer.step(1.0, 0.0)
    before = model.gain.detach().clone()
    model.gain.grad = torch.full_like(model.gain, 3.0)
    optimizer.step(1.0, 0.0)
    torch.testing.assert_close(before - model.gain.detach(), torch.full((5,), 0.1, dtype=torch.float64))
