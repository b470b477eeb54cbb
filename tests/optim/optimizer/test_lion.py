"""Lion against its equation written out."""

import torch
from torch import nn

from fairway.core.seed import generator
from fairway.model.parts import Part, Role
from fairway.optim.optimizer.lion import Config


class Matrix(Part):
    """One matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(9, 5, generator=generator(0, "m"), dtype=torch.float64))

    def roles(self) -> dict[str, Role]:
        return {"matrix": Role.MATRIX}


def test_a_hundred_steps_equal_the_equation() -> None:
    model = Matrix()
    weight, momentum = model.matrix.detach().clone(), torch.zeros(9, 5, dtype=torch.float64)
    optimizer = Config(lr=0.01, weight_decay=0.3, beta1=0.8, beta2=0.95).build(model)
    for step in range(100):
        gradient = torch.randn(9, 5, generator=generator(1, step), dtype=torch.float64)
        model.matrix.grad = gradient.clone()
        optimizer.step(0.5, step / 100)
        sign = torch.sign(0.8 * momentum + 0.2 * gradient)
        weight = weight - 0.005 * (sign + 0.3 * weight)
        momentum = 0.95 * momentum + 0.05 * gradient
        torch.testing.assert_close(model.matrix.detach(), weight, rtol=1e-12, atol=1e-12)
