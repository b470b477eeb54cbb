"""Trains, compresses and scores a very small model from Python; the same as `fairway run recipes/tiny.yaml`.

Usage: python examples/train_tiny.py [FOLDER]
"""

import sys
from pathlib import Path

from fairway.core.log import Event
from fairway.run import Run, load_recipe

RECIPE = Path(__file__).parent.parent / "recipes" / "tiny.yaml"


def tell(event: Event) -> None:
    """Prints every tenth step."""
    step = event.figures.get("step", 0)
    if event.phase == "train" and step and step % 10 == 0:
        print(f"step {step:.0f}: loss {event.figures['train/loss']:.3f}")


def main(folder: Path) -> None:
    """Runs every stage in `folder`; a second call finds the results and reads them."""
    recipe = load_recipe(RECIPE, ["model.width=48", "budget.bytes=30kB"])
    summary = Run.create(recipe, folder).execute(tell)
    print(f"{summary.bits_per_byte:.3f} bits per byte from {summary.bytes:,} bytes: {summary.artifact}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example"))
