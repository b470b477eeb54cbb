"""What learning from a teacher costs: steps with a cached and with a live teacher beside a plain step.

`python benchmarks/distill_speed.py [--threads 1] [--rounds 7] [--kind soft] [--layers 2] [--width 192]`, which is
the shape of `recipes/distill.yaml`. The teacher has twice the student's width, so about four times the parameters of
its layers. `cached` reads the 32 likeliest tokens of every position from disk; `live` runs the teacher at every step.
The limits: a cached step takes at most 1.15 times a plain one; a live step at most 1.1 times a plain step and the
teacher's forward pass together. Before the rounds the loss of the first cached step is compared with that of the same
step taught live by the same 32 tokens.
"""

import argparse
import math
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import pairs

from fairway.core.budget import Budget
from fairway.core.config import override
from fairway.core.device import keep_freed_memory
from fairway.core.probe import machine, versions
from fairway.core.storage import write_json
from fairway.data.batches import Batch
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.train.loop import Loop, Moment, TrainConfig
from fairway.train.meter import Meter
from fairway.train.teacher import DistillConfig, Teaching
from report import RESULTS

CONTEXT, VOCABULARY, BATCH, STEPS, TOP_K = 256, 1024, 16, 2, 32
CONTENDERS = ("plain", "cached", "live", "live top 32", "teacher forward")
CACHED, LIVE = 1.15, 1.10

Prepared = tuple[Callable[[], None], dict[str, Any]]


def model(width: int, layers: int, seed: int) -> LanguageModel:
    heads = max(1, width // 32)
    return ModelConfig.read(
        {"width": width, "context": CONTEXT, "depth": layers, "mixer": {"kind": "attention", "heads": heads}}
    ).build(VOCABULARY, seed)


def batch() -> Batch:
    tokens = torch.randint(0, VOCABULARY, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, torch.zeros_like(tokens, dtype=torch.bool))


def loop_of(name: str, chosen: argparse.Namespace, folder: Path) -> Loop:
    """The student's own loop over one batch, with the teacher that the contender's name says."""
    student, train = model(chosen.width, chosen.layers, 1), TrainConfig.read({"batch": BATCH})
    hooks = []
    if name != "plain":
        teacher = model(2 * chosen.width, chosen.layers, 2)
        changes = [f"loss.kind={chosen.kind}"]
        changes += [] if name == "live" else [f"top_k={TOP_K}"]
        changes += [f"cache={folder}"] if name == "cached" else []
        config = DistillConfig.read(override({}, changes))
        hooks = [Teaching(config, student, teacher, train, 0, VOCABULARY - 1, {"data": "random"})]
    batches: Any = types.SimpleNamespace(rows=lambda first, count, context: batch())  # noqa: ARG005
    return Loop(student, batches, train, Budget(steps=10**9), 0, folder, {}, Meter(1.0, 0.0), hooks)


def steps(loop: Loop, count: int) -> list[dict[str, Any]]:
    """Steps that stand at the beginning of a run, so that a cache knows them all."""
    loop.clock.step = 0
    return [loop.advance(Moment(0.5, 1e9, done=False, save=False, stop=False)) for _ in range(count)]


def prepare(name: str, chosen: argparse.Namespace, folder: Path) -> Prepared:
    if name == "teacher forward":
        teacher, precision = model(2 * chosen.width, chosen.layers, 2).eval(), TrainConfig().precision
        ready = precision.build(teacher, teacher.device)
        tokens = batch().tokens_BT[:, :-1]

        def forward() -> None:
            with torch.no_grad(), ready.forward():
                for _ in range(STEPS):
                    hidden = teacher(tokens).hidden_BTD.flatten(0, 1)
                    for part in hidden.split(2048):
                        teacher.logits(part[None])

        return forward, {}
    loop = loop_of(name, chosen, folder)
    if name == "cached":
        first, taught = (steps(each, 1)[0] for each in (loop_of(name, chosen, folder), loop_of("top", chosen, folder)))
        if not math.isclose(first["distill/loss"], taught["distill/loss"], rel_tol=1e-3):
            raise SystemExit("the cached teacher says something else than the live one; no time is given")
    return lambda: void(steps(loop, STEPS)), {"loss": steps(loop, 1)[0].get("distill/loss")}


def void(result: Any) -> None:
    """Nothing; names what is done only for its time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kind", default="soft", choices=["soft", "forward_kl", "reverse_kl", "js", "skew_kl"])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--contend")
    chosen = parser.parse_args()
    if chosen.contend:
        torch.set_num_threads(chosen.threads)
        keep_freed_memory()
        with tempfile.TemporaryDirectory() as folder:
            pairs.serve(lambda: prepare(chosen.contend, chosen, Path(folder)))
        return
    settings = [f"--{key}={getattr(chosen, key)}" for key in ("threads", "kind", "width", "layers")]
    commands = {name: [__file__, *settings, "--contend", name] for name in CONTENDERS}
    measured = pairs.measure(commands, chosen.rounds, chosen.threads)
    took = {name: (value.cpu if chosen.threads == 1 else value.wall) / STEPS for name, value in measured.items()}
    ratios = {
        "cached / plain": (took["cached"] / took["plain"], CACHED),
        "live / (plain + teacher)": (took["live"] / (took["plain"] + took["teacher forward"]), LIVE),
        "live top 32 / (plain + teacher)": (took["live top 32"] / (took["plain"] + took["teacher forward"]), LIVE),
    }
    for name, seconds in took.items():
        print(f"  {name:<36}{1e3 * seconds:10.1f} ms a step  +-{100 * measured[name].spread:4.1f} %")
    for name, (ratio, limit) in ratios.items():
        print(f"  {name:<36}{ratio:10.3f}  (limit {limit})")
    record = {
        "seconds": took,
        "spread": {name: value.spread for name, value in measured.items()},
        "rounds": chosen.rounds,
        "ratios": {name: {"ratio": ratio, "limit": limit} for name, (ratio, limit) in ratios.items()},
        "settings": {key: getattr(chosen, key) for key in ("threads", "kind", "width", "layers")},
        "machine": machine(),
        "versions": versions(),
    }
    write_json(RESULTS / f"distill_speed_{chosen.threads}t.json", record)


if __name__ == "__main__":
    main()
