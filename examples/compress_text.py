"""Compresses a text with a model, gets it back, and compares the size with the score and with zlib.

Usage: python examples/compress_text.py [runs/example/model.fwy]
"""

import sys
import zlib
from pathlib import Path

import fairway

TEXT = Path(fairway.__file__).with_name("run.py").read_bytes()[:2500]


def main(path: str) -> None:
    """Proves the model's score on a text that it was not trained on."""
    model = fairway.load(path)
    packed = model.compress(TEXT)
    assert model.decompress(packed) == TEXT
    score = model.score(TEXT)
    print(f"{len(TEXT):,} bytes -> {len(packed):,} by the model, {len(zlib.compress(TEXT, 9)):,} by zlib")
    print(f"score {score.bits_per_byte:.3f} bits per byte, really compressed {8 * len(packed) / len(TEXT):.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/example/model.fwy")
