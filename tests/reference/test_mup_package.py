"""Our muP table against the `mup` package on the same network."""

import pytest
import torch
from torch import nn

from fairway.model.parts import Role
from fairway.optim.mup import rule
from fairway.optim.optimizer.adamw import Config as AdamW
from fairway.optim.optimizer.sgd import Config as Sgd

mup = pytest.importorskip("mup")

ROLES = {
    "table.weight": Role.EMBEDDING,
    "norm.weight": Role.VECTOR,
    "up.weight": Role.MATRIX,
    "down.weight": Role.MATRIX,
    "head.weight": Role.HEAD,
}


class Network(nn.Module):
    """An embedding, a gain, two hidden matrices and a readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(40, width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)
        self.head = mup.MuReadout(width, 40, bias=False)


def prepared(width: int) -> Network:
    torch.manual_seed(0)
    network = Network(width)
    mup.set_base_shapes(network, Network(16), delta=Network(32))
    return network


@pytest.mark.parametrize("width", [16, 64, 256])
@pytest.mark.parametrize(("ours", "theirs"), [(AdamW(), mup.MuAdamW), (Sgd(), mup.MuSGD)])
def test_rates_and_decay_of_every_tensor_equal_the_package(width: int, ours: AdamW | Sgd, theirs: type) -> None:
    network, base = prepared(width), dict(Network(16).named_parameters())
    optimizer = theirs(network.parameters(), lr=0.1, weight_decay=0.3)
    groups = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        found = rule(ROLES[name], tuple(parameter.shape), tuple(base[name].shape), ours)
        assert groups[id(parameter)] == pytest.approx((0.1 * found.lr, 0.3 / found.lr)), name


@pytest.mark.parametrize("width", [64, 256])
def test_initial_deviations_equal_the_package(width: int) -> None:
    network = prepared(width)
    torch.manual_seed(0)
    plain, base = Network(width), dict(Network(16).named_parameters())
    for name, parameter in network.named_parameters():
        found = rule(ROLES[name], tuple(parameter.shape), tuple(base[name].shape), AdamW())
        torch.testing.assert_close(parameter, plain.get_parameter(name) * found.deviation, rtol=1e-6, atol=0)


def test_the_readout_is_divided_by_the_growth() -> None:
    network = prepared(64)
    x = torch.randn(5, 64)
    torch.testing.assert_close(network.head(x), x @ network.head.weight.T * (16 / 64), rtol=1e-5, atol=1e-6)
