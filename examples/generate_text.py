"""Loads an artifact and lets it write, piece by piece.

Usage: python examples/generate_text.py [runs/example/model.fwy] [PROMPT]
"""

import sys

import fairway


def main(path: str, prompt: str) -> None:
    """Writes 80 tokens after the prompt."""
    model = fairway.load(path)
    print(prompt, end="")
    for piece in model.generate(prompt, tokens=80, temperature=0.7, top_p=0.95, seed=1):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*(sys.argv[1:] + ["runs/example/model.fwy", "def "][len(sys.argv) - 1 :]))
