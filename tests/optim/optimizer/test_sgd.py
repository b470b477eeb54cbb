"""SGD step for step against torch.optim.SGD."""

import pytest
import torch
from torch import nn

from fairway.core.seed import generator
from fairway.model.parts import Part, Role
from fairway.optim.optimizer.sgd import Config


class Matrix(Part):
    """One matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(9, 5, generator=generator(0, "m"), dtype=torch.float64))

    def roles(self) -> dict[str, Role]:
        return {"matrix": Role.MATRIX}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("coupled", [False, True])
def test_a_hundred_steps_equal_torch(momentum: float, nesterov: bool, coupled: bool) -> None:
    ours, theirs = Matrix(), Matrix()
    config = Config(lr=0.01, weight_decay=0.1, momentum=momentum, nesterov=nesterov, coupled=coupled)
    optimizer = config.build(ours)
    peer = torch.optim.SGD(
        theirs.parameters(),
        lr=0.01,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        weight_decay=0.1 if coupled else 0.0,
    )
    for step in range(100):
        for model in (ours, theirs):
            noise = torch.randn(9, 5, generator=generator(1, step), dtype=torch.float64)
            model.matrix.grad = noise + model.matrix.detach()
        optimizer.step(1.0, step / 100)
        if not coupled:
            theirs.matrix.data.mul_(1 - 0.01 * 0.1)
        peer.step()
    torch.testing.assert_close(ours.matrix, theirs.matrix, rtol=1e-12, atol=1e-12)


def test_without_momentum_there_is_no_state() -> None:
    assert Config(momentum=0.0).build(Matrix()).state() == {}
