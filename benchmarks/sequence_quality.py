"""Bits per byte of each family of sequence layers at equal parameters, seconds and bytes, through whole runs.

`python benchmarks/sequence_quality.py [--seconds 45] [--bytes 500kB] [--seeds 3] [--recipes default mamba ...]
[--override FIELD=VALUE ...]`. Every arm is a recipe of `recipes/` whose parameters agree with the default's within a
thousandth; all train on the same prepared text for the same seconds, are compressed under the same cap, and are scored
from their artifact in a fresh process. Seeds are the outer loop, so that a change of the machine meets all arms alike.

Takes recipes x seeds x (seconds + about 30 s); one seed of all nine recipes about 11 minutes. A finished run is kept in
`--work`, and the same command goes on behind it. Several commands may share the work, each with its own `--first-seed 1
--seeds 1` or `--recipes`; the results hold what all of them have finished at the same settings.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fairway.core.budget import Budget
from fairway.core.log import silent
from fairway.core.probe import machine, versions
from fairway.core.storage import read_json, write_json
from fairway.run import Recipe, Run, load_recipe
from report import RESULTS

RECIPES = ("default", "mamba", "mamba2", "retnet", "rwkv4", "gla", "gated_delta", "ttt_linear", "hybrid")
FOLDER = Path(__file__).parent.parent / "recipes"
MOST_APART = 1e-3
"""Largest relative difference in parameters from the first recipe."""


def recipe(name: str, assignments: list[str]) -> Recipe:
    return load_recipe(FOLDER / f"{name}.yaml", assignments)


def parameters(name: str, assignments: list[str]) -> int:
    chosen = recipe(name, assignments)
    skeleton = chosen.model.skeleton(chosen.data.tokenizer.plain().get("vocabulary", 257))
    return sum(parameter.numel() for parameter in skeleton.parameters())


def one(task: dict[str, Any]) -> dict[str, Any]:
    """One whole run, in this process."""
    chosen, folder = recipe(task["recipe"], task["assignments"]), Path(task["folder"])
    Run.create(chosen, folder)
    summary = Run(chosen, folder, Path(task["data"])).execute(silent)
    return {
        "bits_per_byte": summary.bits_per_byte,
        "bytes": summary.bytes,
        "steps": summary.steps,
        "tokens_per_second": summary.tokens / summary.seconds_train,
        "parameters": summary.parameters,
    }


def alone(task: dict[str, Any]) -> dict[str, Any]:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(task)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{task['recipe']}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(chosen: argparse.Namespace) -> None:
    """Every recipe's runs that are not there yet, each kept as it ends."""
    shared = [*chosen.override, f"budget.bytes={chosen.bytes}", f"budget.seconds={chosen.seconds}"]
    counts = {name: parameters(name, shared) for name in dict.fromkeys(("default", *chosen.recipes))}
    unlike = {name: count for name, count in counts.items() if abs(count / counts["default"] - 1) > MOST_APART}
    if unlike and not chosen.unequal:
        raise SystemExit(f"not the {counts['default']} parameters of default: {unlike}; --unequal compares them still")
    own = f"{chosen.recipes[0]}-seed{chosen.first_seed}"  # commands that share the work do not wait for each other
    text = Run.create(recipe("default", shared), chosen.work / f"text-{settings_key(chosen)}-{own}")
    text.prepare(silent)
    for seed in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
        for name in chosen.recipes:
            path = kept(chosen) / f"{name}-seed{seed}.json"
            if not path.exists():
                folder = chosen.work / f"runs-{settings_key(chosen)}" / f"{name}-seed{seed}"
                task = {
                    "recipe": name, "assignments": [*shared, f"seed={seed}"], "folder": str(folder),
                    "data": str(text.data),
                }  # fmt: skip
                write_json(path, {"recipe": name, "seed": seed, **alone(task)})
            print(f"  {name:<14} seed {seed}: {read_json(path)['bits_per_byte']:.4f} bits per byte", flush=True)


def settings_key(chosen: argparse.Namespace) -> str:
    """A name of the settings that runs must share to be compared."""
    given = json.dumps([chosen.seconds, chosen.bytes, chosen.override, chosen.unequal])
    return hashlib.sha256(given.encode()).hexdigest()[:12]


def kept(chosen: argparse.Namespace) -> Path:
    """The folder of finished runs at these settings."""
    return chosen.work / f"found-{settings_key(chosen)}"


def finished(chosen: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """All runs at these settings, also those of other commands."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(kept(chosen).glob("*.json")):
        found = read_json(path)
        runs.setdefault(found.pop("recipe"), []).append(found)
    return runs


def show(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Mean and standard deviation of each recipe, best first."""
    print(f"  {'recipe':<14}{'bits/byte':>10}{'sigma':>9}{'n':>4}{'steps':>8}{'tokens/s':>10}{'parameters':>12}")
    means = {name: statistics.mean(run["bits_per_byte"] for run in found) for name, found in runs.items()}
    for name in sorted(means, key=means.__getitem__):
        found = runs[name]
        sigma = statistics.stdev(run["bits_per_byte"] for run in found) if len(found) > 1 else float("nan")
        steps, rate = (statistics.mean(run[key] for run in found) for key in ("steps", "tokens_per_second"))
        line = f"  {name:<14}{means[name]:>10.4f}{sigma:>9.4f}{len(found):>4}{steps:>8.0f}{rate:>10,.0f}"
        print(f"{line}{found[0]['parameters']:>12,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--bytes", default="500kB")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--override", nargs="*", default=[], help="assignments for every arm")
    parser.add_argument("--unequal", action="store_true", help="compare although the parameters differ")
    parser.add_argument("--work", type=Path, default=Path("runs/sequence_quality"))
    parser.add_argument("--one", help="internal: one run as JSON")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(json.loads(chosen.one))))
        return
    compare(chosen)
    runs = finished(chosen)
    cap = Budget.read({"bytes": chosen.bytes}).bytes
    print(f"{chosen.seconds:.0f} s of training, at most {cap} bytes")
    show(runs)
    settings = {"seconds": chosen.seconds, "cap": cap, "override": chosen.override}
    today = date.today().isoformat()
    record = {"date": today, "machine": machine(), "versions": versions(), "settings": settings, "runs": runs}
    write_json(RESULTS / "sequence_quality.json", record)


if __name__ == "__main__":
    main()
