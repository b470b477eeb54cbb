"""Deep Compression of a small network on scikit-learn's digits: prune, share weights, code; every byte from a file.

A network 64-300-100-10 is trained, pruned by magnitude in rounds with training between them, its weights shared
by k-means, the centres trained by summed gradients, and all of it written with Huffman codes.

Usage: python examples/deep_compression_digits.py [digits.fwy] (needs scikit-learn)
"""

import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from fairway.artifact.format import Contents, read, restore, write
from fairway.artifact.packing.raw import pack as pack_raw
from fairway.compress.centroids import share, step
from fairway.compress.masks import keep_highest

DENSITIES = (0.4, 0.2, 0.1, 0.07)
CLUSTERS = 15
INDEX_BITS = 5
TRAINED_ON = 1200


def digits() -> tuple[Tensor, Tensor]:
    """Pixels (N, 64) between 0 and 1 and labels (N), in a fixed random order."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    return torch.tensor(pixels[order] / 16, dtype=torch.float32), torch.tensor(labels[order])


def network() -> nn.Sequential:
    """64-300-100-10 with ReLU."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of the test digits named rightly."""
    with torch.no_grad():
        return 100 * float((net(x[TRAINED_ON:]).argmax(1) == y[TRAINED_ON:]).float().mean())


def train(net: nn.Module, x: Tensor, y: Tensor, epochs: int, masks: dict[str, Tensor]) -> None:
    """Adam on the training digits; masked weights are zero after every step."""
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    named = dict(net.named_parameters())
    for _ in range(epochs):
        for rows in torch.randperm(TRAINED_ON).split(100):
            optimizer.zero_grad()
            functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():
                    named[name].mul_(mask)


def main(path: Path) -> None:
    """Trains, compresses, reads the file back, and says what it cost."""
    x, y = digits()
    net = network()
    weights = {name: p for name, p in net.named_parameters() if p.ndim == 2}
    train(net, x, y, 15, {})
    before = accuracy(net, x, y)
    dense = sum(4 * p.numel() for p in net.parameters())
    for density in DENSITIES:
        masks = {n: keep_highest(p.detach().abs(), round(p.numel() * (1 - density))) for n, p in weights.items()}
        train(net, x, y, 7, masks)
    pruned = accuracy(net, x, y)
    shared = share(weights, CLUSTERS)
    for _ in range(4):
        for rows in torch.randperm(TRAINED_ON).split(100):
            functional.cross_entropy(net(x[rows]), y[rows]).backward()
            step(shared.values(), 2e-3)
    tensors = {name: each.pack(INDEX_BITS) for name, each in shared.items()}
    tensors |= {name: pack_raw(p, "float16") for name, p in net.named_parameters() if p.ndim == 1}
    plain = {name: tensors[name] for name, _ in net.named_parameters()}
    size = write(path, Contents({"layers": [64, 300, 100, 10]}, 257, "byte", b"", plain, {}, "huffman"))
    assert size == path.stat().st_size
    net.load_state_dict(restore(read(path)))
    squeezed = len(zlib.compress(b"".join(p.detach().numpy().tobytes() for p in weights.values()), 9))
    print(f"accuracy: dense {before:.2f} %, pruned {pruned:.2f} %, from the file {accuracy(net, x, y):.2f} %")
    print(f"bytes: dense {dense:,}, file {size:,}, ratio {dense / size:.1f}; zlib of its weights {squeezed:,}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits.fwy"))
