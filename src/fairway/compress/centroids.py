"""Training shared weights: every centre moves by the sum of its members' gradients.

`dL/dc_k = sum over i with code_i = k of dL/dw_i`, so `c_k -= rate sum_i dL/dw_i`; with the mean instead, the step
would be too short by the number of members. Code 0 is a removed weight: it stays zero and has no centre. Han et al.
2016 (Deep Compression, arXiv:1510.00149). Shape key: K centres.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fairway.artifact.packing import codebook, sparse
from fairway.artifact.parts import Packed
from fairway.compress.levels import Sorted, Start, fit_levels
from fairway.core.seed import numpy_generator


@dataclass(eq=False)
class Shared:
    """One parameter whose weights are places in a table."""

    parameter: nn.Parameter
    codes: Tensor
    """int64, of the parameter's shape; 0 is a removed weight."""
    centres_K: Tensor
    """float64; `centres_K[code - 1]` is the weight."""

    @torch.no_grad()
    def write(self) -> None:
        """Puts the centres in the places of the weights."""
        table = torch.cat((self.centres_K.new_zeros(1), self.centres_K))
        self.parameter.copy_(table[self.codes])

    def summed_gradient(self) -> Tensor:
        """The gradient of each centre (K)."""
        assert self.parameter.grad is not None
        total = torch.zeros(len(self.centres_K) + 1, dtype=torch.float64)
        total.index_add_(0, self.codes.flatten(), self.parameter.grad.double().flatten())
        return total[1:]

    def pack(self, index_bits: int) -> Packed:
        """Distances between surviving weights and their codes; the centres are rounded to binary16."""
        bits, exponent = codebook.write_centroids(self.centres_K)
        codes = self.codes.numpy().astype(np.int32)
        return sparse.pack(codes, bits, exponent, tuple(self.codes.shape), index_bits)


def share(
    parameters: Mapping[str, nn.Parameter], clusters: int, start: Start = "linear", seed: int = 0
) -> dict[str, Shared]:
    """k-means of each parameter's weights that are not zero, written back into them."""
    found = {}
    for name, parameter in parameters.items():
        weight = parameter.detach().double().numpy()
        alive = weight[weight != 0]
        data = Sorted(alive if alive.size else np.zeros(1))
        levels = fit_levels(data, data.starts(clusters, start, numpy_generator(seed, name)))
        codes = torch.from_numpy(np.where(weight != 0, levels.assign(weight) + 1, 0))
        found[name] = Shared(parameter, codes, torch.from_numpy(levels.values.copy()))
        found[name].write()
    return found


def step(shared: Iterable[Shared], rate: float) -> None:
    """One step of gradient descent on the centres, after a backward; gradients of the weights are spent."""
    for each in shared:
        each.centres_K -= rate * each.summed_gradient()
        each.parameter.grad = None
        each.write()
