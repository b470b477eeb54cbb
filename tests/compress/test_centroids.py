"""Shared weights train by summed gradients, removed weights stay away, and the file holds what was trained."""

import pytest
import torch
from torch import Tensor, nn

from fairway.artifact.format import unpack
from fairway.compress.centroids import Shared, share, step


def pruned_layer(seed: int = 0) -> nn.Linear:
    random = torch.Generator().manual_seed(seed)
    layer = nn.Linear(20, 12, bias=False)
    with torch.no_grad():
        layer.weight.normal_(generator=random).mul_(torch.rand(12, 20, generator=random) < 0.4)
    return layer


def loss_of(layer: nn.Linear) -> Tensor:
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(1))
    return (layer(x) - x[:, :12].sin()).square().mean()


def test_a_centres_gradient_is_that_of_the_loss_as_a_function_of_the_centre() -> None:
    layer = pruned_layer()
    shared = share(dict(layer.named_parameters()), 6)["weight"]
    loss_of(layer).backward()
    found_K = shared.summed_gradient()
    for k in range(len(shared.centres_K)):
        sides = []
        for move in (1e-3, -1e-3):
            shared.centres_K[k] += move
            shared.write()
            sides.append(loss_of(layer).item())
            shared.centres_K[k] -= move
        assert (sides[0] - sides[1]) / 2e-3 == pytest.approx(float(found_K[k]), rel=5e-3, abs=1e-4)


def test_steps_lower_the_loss_and_keep_removed_weights_and_sharing() -> None:
    layer = pruned_layer()
    removed = layer.weight.detach() == 0
    shared = share(dict(layer.named_parameters()), 6)
    first = loss_of(layer).item()
    for _ in range(30):
        loss_of(layer).backward()
        step(shared.values(), 0.05)
    assert loss_of(layer).item() < 0.9 * first
    assert not layer.weight.detach()[removed].any()
    assert len(layer.weight.detach().unique()) <= 7


def test_the_packed_tensor_is_the_trained_one_in_half_precision() -> None:
    layer = pruned_layer()
    shared: Shared = share(dict(layer.named_parameters()), 6)["weight"]
    restored = unpack("weight", shared.pack(3))
    torch.testing.assert_close(restored, layer.weight.detach(), rtol=2**-11, atol=0)
    assert torch.equal(restored == 0, layer.weight.detach() == 0)
