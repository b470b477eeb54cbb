"""Loss scaling against torch's scaler, and a model that float16 cannot train without it."""

import pytest
import torch
from torch import Tensor, nn

from fairway.core.seed import generator
from fairway.model.parts import Part, Role
from fairway.optim.optimizer.sgd import Config as Sgd
from fairway.train.precision.fp16 import Config


class Tiny(Part):
    """One matrix whose outputs are scaled so that its gradients are far below float16's smallest number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.randn(4, 16, generator=generator(0)))

    def roles(self) -> dict[str, Role]:
        return {"weight": Role.MATRIX}

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


def train(scale: float, steps: int = 200) -> list[float]:
    """Losses of a regression in float16 whose loss is a hundred-millionth of the squared error."""
    model, target = Tiny(), torch.randn(4, 16, generator=generator(1))
    precision = Config(scale=scale, patience=10_000).build(model, torch.device("cpu"))
    optimizer = Sgd(lr=2e7, momentum=0.0, weight_decay=0.0).build(model)
    losses = []
    for step in range(steps):
        x = torch.randn(32, 16, generator=generator(2, step))
        optimizer.zero_grad()
        with precision.forward():
            error = (model(x) - nn.functional.linear(x, target)).float()
        loss = error.square().mean() * 1e-8
        precision.scale(loss).backward()
        precision.unscale(optimizer.parameters())
        precision.update(all(torch.isfinite(p.grad).all() for p in optimizer.parameters() if p.grad is not None))
        optimizer.step(1.0, step / steps)
        losses.append(loss.item() * 1e8)
    return losses


def test_small_gradients_vanish_without_a_scale_and_train_with_one() -> None:
    without, with_scale = train(scale=1.0), train(scale=65_536.0)
    assert without[-1] > 0.5 * without[0]
    assert with_scale[-1] < 0.01 * with_scale[0]


def scripts() -> list[list[bool]]:
    source = generator(3)
    mixed = [(torch.rand(60, generator=source) < share).tolist() for share in (0.5, 0.8, 0.95)]
    return [[True] * 30, [False] * 30, *mixed]


@pytest.mark.parametrize("script", scripts())
@pytest.mark.parametrize(("growth", "backoff", "patience"), [(2.0, 0.5, 3), (1.5, 0.25, 5), (2.0, 0.5, 1)])
def test_the_scale_follows_torch_on_scripted_infinities(
    script: list[bool], growth: float, backoff: float, patience: int
) -> None:
    config = Config(scale=1024.0, growth=growth, backoff=backoff, patience=patience)
    ours = config.build(Tiny(), torch.device("cpu"))
    peer = torch.amp.GradScaler(
        device="cpu", init_scale=1024.0, growth_factor=growth, backoff_factor=backoff, growth_interval=patience
    )
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for finite in script:
        assert ours.state()["scale"].item() == peer.get_scale()
        peer.scale(torch.ones(()))
        parameter.grad = torch.full((3,), 1.0 if finite else float("inf"))
        peer.unscale_(optimizer)
        peer.step(optimizer)
        peer.update()
        ours.update(finite)
    assert ours.state()["scale"].item() == peer.get_scale()


def test_the_scale_never_becomes_infinite() -> None:
    precision = Config(scale=2.0**126, patience=1).build(Tiny(), torch.device("cpu"))
    for _ in range(5):
        precision.update(finite=True)
    assert precision.state()["scale"].item() == 2.0**127


def test_unscaling_undoes_scaling_before_anything_is_clipped() -> None:
    model = Tiny()
    precision = Config(scale=4096.0).build(model, torch.device("cpu"))
    loss = (model.weight * torch.arange(64.0).view(4, 16)).sum()
    precision.scale(loss).backward()
    precision.unscale(model.parameters())
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, torch.arange(64.0).view(4, 16))


def test_the_state_goes_on_where_it_stopped() -> None:
    device = torch.device("cpu")
    straight, first, second = (Config(scale=8.0, patience=4).build(Tiny(), device) for _ in range(3))
    script = [True, True, False, True, True, True, True, True]
    for finite in script:
        straight.update(finite)
    for finite in script[:5]:
        first.update(finite)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    for finite in script[5:]:
        second.update(finite)
    assert second.state()["scale"].item() == straight.state()["scale"].item() == 8.0
    assert second.state()["finite_steps"].item() == straight.state()["finite_steps"].item()
