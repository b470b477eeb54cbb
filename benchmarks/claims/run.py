"""Answers a claim by training its arms, and keeps the answer.

    python benchmarks/claims/run.py NAME [--seeds 3] [--seconds 60 | --steps 500] [--threads 1] [--smoke]
    python benchmarks/claims/run.py --all
    python benchmarks/claims/run.py --list
    python benchmarks/claims/run.py --page

Every run is a process of its own; seeds take turns over the arms, so that a change of the machine meets all alike. A
finished run is kept in `runs/claims/NAME/`, and the same command goes on from there. Answers go to
`benchmarks/results/claims/NAME.json`, and `--page` writes `docs/claims.md` from them. `--threads` limits
every run; claims share no files, so that several commands may work side by side. `--smoke` trains a few steps of
everything, to see that a claim works; its answers mean nothing and are kept apart.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from claims.claim import ROOT, TUNING_SEED, Claim, check, names, read_claim
from claims.measure import WRITTEN, carry_out, found_before
from claims.page import render, show
from claims.verdict import judge, summary, values_of

from fairway.core.errors import FairwayError
from fairway.core.log import silent
from fairway.core.probe import machine, versions
from fairway.core.storage import write_json, write_text
from fairway.data.manifest import Manifest
from fairway.run import Recipe, Run

RESULTS = ROOT / "benchmarks" / "results" / "claims"
PAGE = ROOT / "docs" / "claims.md"
SMOKE = (
    "data.max_bytes=1MB", "evaluate.max_bytes=4kB", "sample.tokens=8", "train.validation.windows=2",
    "compress.calibration_sequences=2",
)  # fmt: skip
SMOKE_STEPS, SMOKE_SEEDS, SMOKE_GRID = 6, 2, 2


@dataclass
class Campaign:
    """One claim on its way to an answer."""

    name: str
    claim: Claim
    folder: Path
    extra: tuple[str, ...] = ()
    """Overrides of every run."""
    limit: int | None = None
    """Settings of a grid that are tried at most."""
    tuned: dict[str, Any] = field(default_factory=dict)

    def answer(self) -> dict[str, Any]:
        """Trains what has not been trained yet, and judges."""
        claim = self.claim
        start = time.monotonic()
        check(claim)
        chosen = {arm: self._tune(arm) for arm in claim.arms}
        sizes = check(claim, chosen)
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in claim.arms}
        for seed in range(claim.seeds):
            for arm in claim.arms:
                runs[arm].append(self._run(arm, seed, chosen[arm]))
        over = [f"{arm} with {run['bytes']:,}" for arm in runs for run in runs[arm] if run["bytes"] > claim.bytes]
        assert not over, f"above the cap of {claim.bytes:,} bytes: {', '.join(over)}"
        return {
            "name": self.name,
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "versions": versions(),
            "claim": claim.plain(),
            "sizes": {arm: asdict(size) for arm, size in sizes.items()},
            "tuned": self.tuned,
            "arms": {arm: self._summary(arm, runs) for arm in claim.arms},
            **_of_the_corpus(runs),
            "comparisons": judge(claim, runs),
            "runs": runs,
            "seconds_of_this_command": round(time.monotonic() - start, 1),
        }

    def _summary(self, arm: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        metrics = dict.fromkeys(("bits_per_byte", *(one.metric for one in self.claim.comparisons), *WRITTEN))
        own = {metric: summary(values) for metric in metrics if (values := values_of(self.claim, metric, runs)[arm])}
        figures = ("train_bits_per_byte", "val_bits_per_byte", "ahead_bits_per_byte", "bytes", "steps", "seconds")
        return own | {name: summary([run[name] for run in runs[arm]]) for name in figures if name in runs[arm][0]}

    def _tune(self, arm: str) -> Sequence[str]:
        """The setting of an arm's grid that predicts best at the tuning seed."""
        settings = self.claim.settings(arm, self.limit)
        if len(settings) == 1:
            return settings[0]
        scores = [self._run(arm, TUNING_SEED, setting)["bits_per_byte"] for setting in settings]
        best = min(range(len(settings)), key=scores.__getitem__)
        self.tuned[arm] = {"settings": [list(one) for one in settings], "scores": scores, "best": list(settings[best])}
        return settings[best]

    def _run(self, arm: str, seed: int, chosen: Sequence[str]) -> dict[str, Any]:
        """One run, or what it found earlier."""
        claim, way = self.claim, self.claim.arms[arm]
        extra = [*self.extra]
        teacher = self._teacher(seed) if claim.teacher is not None else None
        if way.taught:
            extra += [f"distill.teacher.path={teacher}", "distill.baseline=false"]
        recipe = claim.recipe(arm, seed, chosen, extra)
        kinds = sorted({one.extension for one in claim.arms.values() if one.extension})
        task = {"extensions": kinds, "context": claim.context, "teacher": str(teacher) if teacher else None}
        print(f"  {arm}, seed {seed} {' '.join(chosen)}", end=" ", flush=True)
        found = self._in_a_process(recipe, task, native=way.native)
        print(f"{found['bits_per_byte']:.4f} bpb, {found['bytes']:,} bytes, {found['steps']:,} steps", flush=True)
        return found

    def _teacher(self, seed: int) -> Path:
        recipe = self.claim.teacher_recipe(seed, self.extra)
        self._in_a_process(recipe, {"extensions": [], "context": None, "teacher": None})
        return self._place(recipe) / "model.fwy"

    def _place(self, recipe: Recipe, native: bool = True) -> Path:
        return self.folder / f"{recipe.fingerprint()[:16]}{'' if native else '-python'}"

    def _in_a_process(self, recipe: Recipe, task: dict[str, Any], native: bool = True) -> dict[str, Any]:
        folder = self._place(recipe, native)
        if (found := found_before(folder)) is not None:
            return found
        task |= {"recipe": recipe.plain(), "folder": str(folder), "data": str(self._data(recipe))}
        command = [sys.executable, __file__, "--one", json.dumps(task)]
        environment = os.environ | ({} if native else {"FAIRWAY_NATIVE": "0"})
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise FairwayError(f"The run in {folder} failed: {reason}")
        return json.loads(done.stdout.splitlines()[-1])

    def _data(self, recipe: Recipe) -> Path:
        """The prepared text of a recipe; runs of a claim with the same text and tokenizer share it."""
        run = Run(recipe, self.folder / "data" / recipe.data.fingerprint()[:16])
        run.data = run.folder
        manifest: Manifest = run.prepare(silent)
        return manifest.folder


def _of_the_corpus(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The measures of written text that real text has, where they were taken."""
    found = [run["of_the_corpus"] for those in runs.values() for run in those if "of_the_corpus" in run]
    return {"of_the_corpus": {name: summary([one[name] for one in found]) for name in found[0]}} if found else {}


def one(task: dict[str, Any]) -> None:
    """The side of a run's own process."""
    teacher = Path(task["teacher"]) if task["teacher"] else None
    settings = {"extensions": tuple(task["extensions"]), "context": task["context"], "teacher": teacher}
    recipe = Recipe.read(task["recipe"])
    print(json.dumps(carry_out(recipe, Path(task["folder"]), Path(task["data"]), **settings)))


def smoked(claim: Claim) -> Claim:
    """The claim with a few steps a run and few seeds."""
    plain = claim.plain() | {"seeds": min(claim.seeds, SMOKE_SEEDS), "seconds": None, "steps": SMOKE_STEPS}
    plain["equal"] = [what for what in plain["equal"] if what not in ("seconds", "steps")] + ["steps"]
    return Claim.read(plain)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help="which claims: their files' names, or paths")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--page", action="store_true", help="write docs/claims.md from all answers")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--seconds", type=float, help="of a run, for claims measured in seconds")
    parser.add_argument("--steps", type=int, help="of a run, for claims measured in steps")
    parser.add_argument("--threads", type=int, help="of every run; all cores, or OMP_NUM_THREADS, if not given")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "claims")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    try:
        return _obey(chosen)
    except FairwayError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _obey(chosen: argparse.Namespace) -> int:
    if chosen.one:
        one(json.loads(chosen.one))
        return 0
    if chosen.threads:
        os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    if chosen.list:
        for name in names():
            print(f"{name:<28}{read_claim(name).question}")
    for name in names() if chosen.all else chosen.name:
        _answer(name, chosen)
    if chosen.page:
        write_text(PAGE, render(RESULTS))
        print(PAGE)
    return 0


def _answer(name: str, chosen: argparse.Namespace) -> None:
    claim = read_claim(name)
    changes = {"seeds": chosen.seeds, claim.measure: getattr(chosen, claim.measure)}
    claim = Claim.read(claim.plain() | {key: value for key, value in changes.items() if value is not None})
    stem = Path(name).stem
    print(f"{stem}: {claim.question}", flush=True)
    if chosen.smoke:
        folder = chosen.work.with_name(f"{chosen.work.name}-smoke")
        answer = Campaign(stem, smoked(claim), folder / stem, SMOKE, SMOKE_GRID).answer()
        write_json(folder / f"{stem}.json", answer)
    else:
        answer = Campaign(stem, claim, chosen.work / stem).answer()
        write_json(RESULTS / f"{stem}.json", answer)
    print(show(answer), flush=True)


if __name__ == "__main__":
    sys.exit(main())
