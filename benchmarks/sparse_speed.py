"""A matrix with 90 % zeros times a vector: Deep Compression's codes by our kernel beside scipy, torch and dense int8.

`python benchmarks/sparse_speed.py [--size 512 1024 2048 4096] [--rounds 7] [--products 2000]`. One thread. Entries lie
anywhere and share 15 weights. Each contender computes the same product; the largest difference from float64, over the
largest number of the product, is checked before it is timed, and where it exceeds `ERROR` the rate is not shown.
`fairway-int8` is our own product with a dense matrix of 8 bits, whose weights are other numbers.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parent))

import pairs

from fairway.ops.matvec import native as dense
from fairway.ops.sparse_matvec import native
from report import save

OURS = ("fairway-sparse", "fairway-int8")
PEERS = ("scipy-csr", "torch-csr", "torch-dense")
DENSITY, SHARED, ERROR = 0.1, 15, 1e-5

Prepared = tuple[Callable[[], Any], np.ndarray]


def drawn(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a square matrix, 0 where it is zero, and what they stand for."""
    random = np.random.default_rng(0)
    code = random.integers(1, SHARED + 1, (size, size)) * (random.random((size, size)) < DENSITY)
    return code, np.concatenate(([0], random.standard_normal(SHARED))).astype(np.float32)


def prepared(name: str, size: int, x: torch.Tensor) -> Prepared:
    """The product to be timed, and what it should give, in float64."""
    code, table = drawn(size)
    if name == "fairway-int8":
        value = torch.randint(-127, 128, (size, size), generator=torch.Generator().manual_seed(0))
        matrix, step = (value * 0.01).float(), torch.full((size,), 0.01)
        packed = dense.packed(value * step[:, None], step, fewest_bits=8)
        return lambda: dense.matvec(packed, x), matrix.double().numpy() @ x.double().numpy()
    wanted = table[code].astype(np.float64) @ x.double().numpy()
    if name == "fairway-sparse":
        places = np.flatnonzero(code)
        gaps, codes = np.diff(places, prepend=-1) - 1, code.reshape(-1)[places]
        held = native.packed(gaps, codes, torch.from_numpy(table), size, size)
        return lambda: native.sparse_matvec(held, x), wanted
    if name == "scipy-csr":
        rows, vector = sparse.csr_matrix(table[code]), x.numpy()
        return lambda: rows @ vector, wanted
    matrix = torch.from_numpy(table[code])
    if name == "torch-csr":
        matrix = matrix.to_sparse_csr()
    return lambda: matrix @ x, wanted


def prepare(name: str, size: int, products: int) -> tuple[Callable[[], None], dict[str, Any]]:
    torch.set_num_threads(1)
    x = torch.randn(size, generator=torch.Generator().manual_seed(1))
    product, wanted = prepared(name, size, x)
    error = np.abs(np.asarray(product(), np.float64) - wanted).max() / np.abs(wanted).max()

    def run() -> None:
        for _ in range(products):
            product()

    return run, {"error": float(error)}


def measure(size: int, chosen: argparse.Namespace) -> None:
    """One table: every contender at one size."""
    products = max(1, round(chosen.products * (1024 / size) ** 2))
    base = [__file__, "--size", str(size), "--products", str(products), "--contend"]
    measured = pairs.measure({name: [*base, name] for name in (*OURS, *PEERS)}, chosen.rounds, 1)
    wrong = {name for name, value in measured.items() if not value.facts["error"] <= ERROR}
    for name in sorted(wrong):
        print(f"{name} is not shown: its product was off by {measured[name].facts['error']}.")
    rates = {name: products / value.wall for name, value in measured.items() if name not in wrong}
    save(f"sparse_speed_{size}", measured, rates, "products per second", OURS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--products", type=int, default=2000, help="a round's products at size 1024")
    parser.add_argument("--contend")
    chosen = parser.parse_args()
    if chosen.contend:
        pairs.serve(lambda: prepare(chosen.contend, chosen.size[0], chosen.products))
        return
    for size in chosen.size:
        measure(size, chosen)


if __name__ == "__main__":
    main()
