"""Structured pruning of a small convolutional network on scikit-learn's digits: slimming and filters by L1.

Slimming (Liu et al. 2017, arXiv:1708.06519) trains with `penalty sum |gamma|` on the gains of batch normalisation and
removes the channels of the smallest gains in the whole network; filter pruning (Li et al. 2016, arXiv:1608.08710)
removes the filters of least absolute sum in each layer. Either way a smaller network is built. A channel of gain 0
still emits ReLU(beta): the next layer's bias takes it up. Convolutions here have no padding, so that is exact.

Usage: python examples/slimming_convnet.py (needs scikit-learn)
"""

import copy
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (32, 48)
CLASSES = 10
KEPT = 0.5
LEAST = 0.25
PENALTY = 5e-4
TRAINED_ON = 1200


class ConvNet(nn.Module):
    """Two convolutions of 3 x 3 with batch normalisation and ReLU, a mean over places, a linear map."""

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        first, second = channels
        self.convs = nn.ModuleList((nn.Conv2d(1, first, 3, bias=False), nn.Conv2d(first, second, 3)))
        self.norms = nn.ModuleList((nn.BatchNorm2d(first), nn.BatchNorm2d(second)))
        self.head = nn.Linear(second, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_NCHW = functional.relu(norm(conv(x_NCHW)))
        return self.head(x_NCHW.mean(dim=(2, 3)))


def by_gain(net: ConvNet, kept: float) -> list[Tensor]:
    """The channels with the largest gains of the whole network; each layer keeps at least a quarter."""
    sizes = torch.cat([norm.weight.detach().abs() for norm in net.norms])
    border = sizes.sort(descending=True).values[round(kept * len(sizes)) - 1]
    masks = [norm.weight.detach().abs() >= border for norm in net.norms]
    for mask, norm in zip(masks, net.norms, strict=True):
        mask[norm.weight.detach().abs().topk(round(LEAST * len(mask))).indices] = True
    return masks


def by_filter(net: ConvNet, kept: float) -> list[Tensor]:
    """In each layer, the filters with the largest sums of absolute weights."""
    masks = []
    for conv in net.convs:
        sums = conv.weight.detach().abs().sum(dim=(1, 2, 3))
        masks.append(sums >= sums.sort(descending=True).values[round(kept * len(sums)) - 1])
    return masks


@torch.no_grad()
def masked(net: ConvNet, masks: list[Tensor]) -> ConvNet:
    """The same network with the gains of removed channels zero; they still emit ReLU(beta)."""
    result = copy.deepcopy(net)
    for norm, mask in zip(result.norms, masks, strict=True):
        norm.weight.mul_(mask)
    return result


@torch.no_grad()
def rebuilt(net: ConvNet, masks: list[Tensor]) -> ConvNet:
    """The smaller network that computes what `masked` does."""
    first, second = masks
    small = ConvNet((int(first.sum()), int(second.sum()))).to(net.head.weight.dtype)
    for target, source, kept in zip(small.norms, net.norms, masks, strict=True):
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(target, name).copy_(getattr(source, name)[kept])
    left = [functional.relu(norm.bias) * ~kept for norm, kept in zip(net.norms, masks, strict=True)]
    small.convs[0].weight.copy_(net.convs[0].weight[first])
    small.convs[1].weight.copy_(net.convs[1].weight[second][:, first])
    absorbed = net.convs[1].bias + net.convs[1].weight.sum(dim=(2, 3)) @ left[0]
    small.convs[1].bias.copy_(absorbed[second])
    small.head.weight.copy_(net.head.weight[:, second])
    small.head.bias.copy_(net.head.bias + net.head.weight @ left[1])
    return small.train(net.training)


def train(net: ConvNet, x: Tensor, y: Tensor, epochs: int, penalty: float = 0.0) -> None:
    """Adam, with the subgradient of the penalty on the gains."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(TRAINED_ON).split(100):
            optimizer.zero_grad()
            functional.cross_entropy(net(x[rows]), y[rows]).backward()
            for norm in net.norms:
                norm.weight.grad.add_(norm.weight.detach().sign(), alpha=penalty)
            optimizer.step()
    net.eval()


def accuracy(net: ConvNet, x: Tensor, y: Tensor) -> float:
    """Percent of the test digits named rightly."""
    with torch.no_grad():
        return 100 * float((net(x[TRAINED_ON:]).argmax(1) == y[TRAINED_ON:]).float().mean())


def largest_difference(net: ConvNet, masks: list[Tensor], x: Tensor) -> float:
    """Between the logits of the masked and of the rebuilt network, in float64."""
    exact = copy.deepcopy(net).double()
    with torch.no_grad():
        return float((masked(exact, masks)(x.double()) - rebuilt(exact, masks)(x.double())).abs().max())


def milliseconds(net: ConvNet, x: Tensor) -> float:
    """Median time of a forward of 500 digits."""
    times = []
    with torch.no_grad():
        for _ in range(9):
            start = time.perf_counter()
            net(x[:500])
            times.append(time.perf_counter() - start)
    return 1000 * sorted(times)[4]


def operations(channels: tuple[int, int]) -> int:
    """Multiplications of one digit: 6 x 6 and 4 x 4 places, 3 x 3 filters, the linear map."""
    first, second = channels
    return 36 * 9 * first + 16 * 9 * first * second + CLASSES * second


def main() -> None:
    """Prunes by both rules, proves that the small network equals the masked one, and trains it on."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    x, y = torch.tensor(pixels[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels[order])
    for rule, penalty, choose in (("slimming", PENALTY, by_gain), ("filters", 0.0, by_filter)):
        torch.manual_seed(0)
        net = ConvNet(CHANNELS)
        train(net, x, y, 8, penalty)
        masks = choose(net, KEPT)
        small = rebuilt(net, masks)
        widths = (int(masks[0].sum()), int(masks[1].sum()))
        difference = largest_difference(net, masks, x)
        dense, at_once = accuracy(net, x, y), accuracy(small, x, y)
        train(small, x, y, 5)
        print(
            f"{rule}: channels {CHANNELS} -> {widths}, "
            f"operations {operations(CHANNELS) / operations(widths):.2f}x fewer, "
            f"accuracy {dense:.2f} % -> {at_once:.2f} % -> {accuracy(small, x, y):.2f} % after training on, "
            f"{milliseconds(net, x):.1f} ms -> {milliseconds(small, x):.1f} ms, masked - rebuilt {difference:.1e}"
        )


if __name__ == "__main__":
    main()
