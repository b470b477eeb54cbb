"""Entropy coding of quantised weights: symbols a second and bits above the entropy, beside constriction.

`python benchmarks/coder_speed.py [--symbols 4000000] [--steps 0.1 0.35 1.0] [--rounds 7]`. One thread. The symbols are
Gaussian numbers rounded to a step, so their entropy is about 5.4, 3.6 and 2.1 bits. `fairway` and constriction's
asymmetric numeral systems and range coder are handed frequencies, brought into their form before the clock; `fairway
stream` is what stands in an artifact: it counts the symbols and fits, writes and reads its table within the time. What
a contender decodes is compared with the symbols before it is timed.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from constriction import stream

sys.path.insert(0, str(Path(__file__).parent))

import pairs

from fairway.artifact.coder.rans import Rans, best_grid
from report import save

OURS = ("fairway", "fairway stream")
PEERS = ("constriction ANS", "constriction range")

Coding = tuple[Callable[[], Any], Callable[[Any], np.ndarray], Callable[[Any], int]]
"""An encoder, the decoder of what it returns, and the bytes that this takes."""


def drawn(count: int, step: float) -> np.ndarray:
    return np.rint(np.random.default_rng(0).standard_normal(count) / step).astype(np.int32)


def entropy(symbols: np.ndarray) -> float:
    """Bits a symbol."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / counts.sum())


def coding(name: str, places: np.ndarray) -> Coding:
    """A contender's coder for symbols that count from 0."""
    coder, counts = Rans(), np.bincount(places)
    if name == "fairway stream":
        return lambda: coder.encode(places), lambda coded: coder.decode(coded, len(places)), len
    if name == "fairway":
        grid = best_grid(np.maximum(counts, 1).tolist(), counts)
        return (
            lambda: grid.encode(places),
            lambda coded: grid.decode(memoryview(b"".join(coded))[1:], len(places)),
            lambda coded: sum(len(part) for part in coded),
        )
    model = stream.model.Categorical((counts / counts.sum()).astype(np.float32), perfect=False, lazy=False)
    reader = stream.stack.AnsCoder if name.endswith("ANS") else stream.queue.RangeDecoder

    def encode() -> np.ndarray:
        if name.endswith("ANS"):
            stack = stream.stack.AnsCoder()
            stack.encode_reverse(places, model)
            return stack.get_compressed()
        queue = stream.queue.RangeEncoder()
        queue.encode(places, model)
        return queue.get_compressed()

    return encode, lambda coded: reader(coded).decode(model, len(places)), lambda coded: coded.nbytes


def prepare(name: str, task: str, count: int, step: float) -> tuple[Callable[[], None], dict[str, Any]]:
    """The work of a round, and how far the coded size lies above the entropy."""
    symbols = drawn(count, step)
    places = symbols - symbols.min()
    encode, decode, size = coding(name, places)
    coded = encode()
    facts = {
        "right": bool(np.array_equal(decode(coded), places)),
        "above_entropy": 8 * size(coded) / count / entropy(places) - 1,
        "entropy": entropy(places),
    }
    return (lambda: void(encode())) if task == "encode" else (lambda: void(decode(coded))), facts


def void(_: Any) -> None:
    """Forgets what a round made."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=4_000_000)
    parser.add_argument("--steps", type=float, nargs="+", default=[0.1, 0.35, 1.0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--contend", nargs=3)
    chosen = parser.parse_args()
    if chosen.contend:
        name, task, step = chosen.contend
        pairs.serve(lambda: prepare(name, task, chosen.symbols, float(step)))
        return
    for task in ("encode", "decode"):
        for step in chosen.steps:
            base = [__file__, "--symbols", str(chosen.symbols), "--contend"]
            commands = {name: [*base, name, task, str(step)] for name in (*OURS, *PEERS)}
            measured = pairs.measure(commands, chosen.rounds, threads=1)
            rates = {
                name: chosen.symbols / found.wall / 1e6 for name, found in measured.items() if found.facts["right"]
            }
            save(f"coder_{task}_{measured['fairway'].facts['entropy']:.1f}_bits", measured, rates, "M symbols/s", OURS)
            for name, found in measured.items():
                print(f"  {name:<36}{100 * found.facts['above_entropy']:8.4f} % above the entropy")


if __name__ == "__main__":
    main()
