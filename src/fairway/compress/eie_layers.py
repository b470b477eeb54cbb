"""The nine layers on which EIE was measured, with the paper's figures, and random layers of the same densities.

Times are those the paper gives for its 64 elements at 800 MHz (Han et al. 2016, tables of benchmarks and of wall-clock
times); they are silicon's, not Fairway's.
"""

from dataclasses import dataclass

import numpy as np

from fairway.compress.eie import Interleaved, Machine, Work, lay_out, work
from fairway.core.config import Source
from fairway.core.seed import numpy_generator

SOURCE = Source("Han et al.", 2016, "arXiv:1602.01528")
PAPER_HERTZ = 800e6
PAPER_ELEMENTS = 64


@dataclass(frozen=True)
class Published:
    """A layer as the paper lists it."""

    name: str
    inputs: int
    outputs: int
    weight_density: float
    activation_density: float
    paper_theoretical_us: float
    """The paper's time at perfect balance, in microseconds."""
    paper_actual_us: float
    """The paper's time of its simulated hardware, in microseconds."""


PUBLISHED = (
    Published("Alex-6", 9216, 4096, 0.09, 0.351, 28.1, 30.3),
    Published("Alex-7", 4096, 4096, 0.09, 0.353, 11.7, 12.2),
    Published("Alex-8", 4096, 1000, 0.25, 0.375, 8.9, 9.9),
    Published("VGG-6", 25088, 4096, 0.04, 0.183, 28.1, 34.4),
    Published("VGG-7", 4096, 4096, 0.04, 0.375, 7.9, 8.7),
    Published("VGG-8", 4096, 1000, 0.23, 0.411, 7.3, 8.4),
    Published("NT-We", 4096, 600, 0.10, 1.0, 5.2, 8.0),
    Published("NT-Wd", 600, 8791, 0.11, 1.0, 13.0, 13.9),
    Published("NT-LSTM", 1201, 2400, 0.10, 1.0, 6.5, 7.5),
)


def random_layer(
    shape: tuple[int, int], density: float, machine: Machine, seed: int = 0, name: str = "layer"
) -> Interleaved:
    """A matrix of which each weight by itself is there with the given chance; its values are random codes."""
    random = numpy_generator(seed, "eie", name)
    size = shape[0] * shape[1]
    expected = size * density
    places = np.cumsum(random.geometric(density, int(expected + 8 * expected**0.5 + 64))) - 1
    assert places[-1] >= size
    places = places[places < size]
    most = (1 << machine.code_bits) - 1
    codes = random.integers(1, most + 1, len(places))
    table = np.concatenate(([0], np.arange(1, most + 1) * 2 - most - 1))
    return lay_out(places, codes, shape, table, 0, machine)


def random_activations(columns: int, density: float, seed: int = 0, name: str = "layer") -> np.ndarray:
    """16-bit activations, exactly the given share of them not zero."""
    random = numpy_generator(seed, "eie activations", name)
    values = np.zeros(columns, np.int64)
    places = random.permutation(columns)[: round(columns * density)]
    values[places] = random.integers(1, 1 << 14, len(places))
    return values


def simulated(layer: Published, machine: Machine, seed: int = 0) -> Work:
    """The work of a random layer of a published layer's size and densities."""
    matrix = random_layer((layer.outputs, layer.inputs), layer.weight_density, machine, seed, layer.name)
    return work(matrix, random_activations(layer.inputs, layer.activation_density, seed, layer.name))
