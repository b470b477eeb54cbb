"""Bytes of a trained artifact's integers under Fairway's coder and general compressors, and the seconds to decode.

`python benchmarks/artifact_size.py ARTIFACT`. Every compressor gets the same integers, one byte each, in the same
order.
"""

import argparse
import bz2
import lzma
import math
import sys
import time
import zlib
from pathlib import Path

import brotli
import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).parent))

from fairway.artifact import format as artifact_format
from fairway.artifact.report import report
from fairway.core.probe import machine, versions
from fairway.core.storage import write_json
from report import RESULTS


def entropy_bytes(codes: np.ndarray) -> float:
    """Empirical order-0 entropy of a stream."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, nargs="?", default=Path("runs/default/model.fwy"))
    chosen = parser.parse_args()
    if not chosen.artifact.exists():
        print(f"There is no artifact {chosen.artifact}; make run makes one.")
        return
    contents = artifact_format.read(chosen.artifact)
    streams = {
        f"{name}.{section}": np.asarray(values)
        for name, packed in contents.tensors.items()
        for section, values in packed.arrays.items()
        if len(values)
    }
    plain = b"".join(
        codes.astype(np.int16).tobytes() if np.abs(codes).max() > 127 else codes.astype(np.int8).tobytes()
        for codes in streams.values()
    )
    start = time.perf_counter()
    artifact_format.restore(artifact_format.read(chosen.artifact))
    seconds = time.perf_counter() - start
    sizes = {
        "entropy of each tensor": sum(entropy_bytes(codes) for codes in streams.values()),
        "fairway, with its tables": sum(tensor.bytes for tensor in report(chosen.artifact.read_bytes()).tensors),
        "fairway, the whole file": chosen.artifact.stat().st_size,
        "zlib-9": len(zlib.compress(plain, 9)),
        "bz2-9": len(bz2.compress(plain, 9)),
        "lzma-9e": len(lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)),
        "zstd-22": len(zstandard.ZstdCompressor(level=22).compress(plain)),
        "brotli-11": len(brotli.compress(plain, quality=11)),
    }
    weights = sum(codes.size for codes in streams.values())
    for name, size in sorted(sizes.items(), key=lambda item: item[1]):
        print(f"  {name:<26}{size:>12,.0f} bytes  {8 * size / weights:6.3f} bits a weight")
    print(f"  read, checked and decoded in {seconds:.3f} s")
    assert math.isfinite(seconds)
    record = {"machine": machine(), "versions": versions(), "sizes": sizes, "weights": weights, "seconds": seconds}
    write_json(RESULTS / "artifact_size.json", record)


if __name__ == "__main__":
    main()
