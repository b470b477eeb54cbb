"""The best learning rate of AdamW over widths 64 to 512, in the standard parametrisation and in muP.

`python benchmarks/transfer.py [--seeds 1] [--steps 100] [--folder runs/transfer]`: `fairway transfer` on the tiny
recipe, with factors of two on its rates. About eight minutes a seed on one thread; what has been trained is kept in
the folder, and the same command goes on from there.
"""

import argparse
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from page_parts import table

from fairway.core.probe import machine, versions
from fairway.core.storage import write_json, write_text
from report import RESULTS

WIDTHS, FACTORS = "64,128,256,512", "-3,2"
RECIPE = Path(__file__).parents[1] / "recipes" / "tiny.yaml"


def rows(found: dict[str, Any], kind: str) -> list[list[object]]:
    """For each width the loss at each factor, and the factor that is best."""
    losses, best = found["losses"][kind], found["best"][kind]
    return [[width, *of, one] for width, of, one in zip(found["widths"], losses, best, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("runs/transfer"))
    chosen = parser.parse_args()
    settings = {"widths": WIDTHS, "factors": FACTORS, "steps": chosen.steps, "seeds": chosen.seeds}
    options = [f"--{name}={value}" for name, value in (settings | {"folder": chosen.folder}).items()]
    command = ["transfer", str(RECIPE), "train.optimizer.kind=adamw", *options, "--json"]
    done = subprocess.run([sys.executable, "-m", "fairway", *command], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    about = {"date": date.today().isoformat(), "machine": machine(), "versions": versions(), "settings": settings}
    for kind, plot in found["plots"].items():
        lines = table(["width", *(f"{factor:g}" for factor in found["factors"]), "best"], rows(found, kind))
        text = (
            f"AdamW, tiny recipe, {chosen.steps} steps, n = {chosen.seeds}: nats at factors of its learning rate. "
            f"From width 64 to 512 the best factor moves by 2^{found['shifts'][kind]:g}.\n\n{lines}\n"
        )
        print(text)
        stem = RESULTS / f"transfer_{kind}"
        write_json(stem.with_suffix(".json"), about | {"kind": kind, "losses": found["losses"][kind]})
        write_text(stem.with_suffix(".md"), text)
        write_text(stem.with_suffix(".svg"), Path(plot).read_text())


if __name__ == "__main__":
    main()
