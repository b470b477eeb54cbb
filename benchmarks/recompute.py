"""Memory and time of every kind of recomputation: peak bytes of kept activations, and a step's time beside `none`.

`python benchmarks/recompute.py [--layers 24] [--width 128] [--context 256] [--batch 8] [--threads 1] [--rounds 5]`.
`predicted` are the bytes of the blocks' activations that the kind's plan foresees; `peak` is the most memory the
process held during a step above what it held before, gradients and logits included, by the kernel's own mark. Every
kind's gradients are compared with those of `none`, bit for bit, before the first round. The limits: recomputing every
block takes at most 1.35 times the time, selective recomputation at most 1.1. Writes results/recompute_*.{json,md,svg}.
"""

import argparse
import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import pairs

from fairway.core.budget import show_bytes
from fairway.core.device import keep_freed_memory
from fairway.core.probe import machine, versions
from fairway.core.storage import write_json, write_text
from fairway.loss.next_token import NextTokenConfig, next_token
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.report.chart import Line, lines, standing_alone
from fairway.train.recomputation import measure
from fairway.train.settings import TrainConfig
from report import RESULTS

KINDS = ("none", "selective", "sqrt", "every", "optimal", "revolve", "offload")
LIMITS = {"every": 1.35, "selective": 1.1}
VOCABULARY = 512


class Step:
    """Forward and backward passes of one batch under one kind of recomputation."""

    def __init__(self, kind: str, chosen: argparse.Namespace) -> None:
        layers, heads = chosen.layers, max(1, chosen.width // 32)
        shape = {"width": chosen.width, "context": chosen.context, "depth": layers}
        config = ModelConfig.read({**shape, "mixer": {"kind": "attention", "heads": heads}})
        self.model: LanguageModel = config.build(VOCABULARY, seed=0)
        training = TrainConfig.read({"recompute": kind})
        self.recompute = training.recompute
        self.recompute.apply(self.model)
        self.precision = training.precision.build(self.model, self.model.device)
        source = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, VOCABULARY, (chosen.batch, chosen.context + 1), generator=source)
        self.model.train()

    def __call__(self) -> None:
        self.model.zero_grad()
        self.loss().backward()

    def loss(self) -> Tensor:
        with self.precision.forward():
            hidden = self.model(self.tokens[:, :-1]).hidden_BTD.flatten(0, 1)
            head, embedding = self.model.head, self.model.embedding
            parameters = [*embedding.parameters(), *head.parameters()]
            return next_token(
                lambda x: head.uncapped(x, embedding=embedding, progress=1.0), parameters, hidden,
                self.tokens[:, 1:].flatten(), NextTokenConfig(), head.config.softcap,
            ).loss  # fmt: skip

    def gradients(self) -> list[Tensor]:
        self()
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]

    def predicted(self) -> int:
        """Bytes of activations that the kind's own plan foresees at the peak."""
        with self.precision.forward():
            costs = measure(self.model, self.tokens[:, :-1])
        return int(self.recompute.predict(costs).bytes)

    def peak(self) -> int:
        """Bytes of the process above those before the step."""
        self.model.zero_grad()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the kernel's mark back
        before = _memory("VmRSS")
        self()
        return _memory("VmHWM") - before


def _memory(name: str) -> int:
    lines_of = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines_of if line.startswith(name))


def prepare(kind: str, chosen: argparse.Namespace) -> tuple[Callable[[], None], dict[str, Any]]:
    step = Step(kind, chosen)
    if kind != "none":
        plain = Step("none", chosen)
        same = all(torch.equal(a, b) for a, b in zip(step.gradients(), plain.gradients(), strict=True))
        del plain
        if not same:
            raise SystemExit(f"the gradients of {kind} are not those of none; no figure is given")
    step()
    return step, {"predicted": step.predicted(), "peak": step.peak()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    out = ["| kind | predicted | peak | seconds | time beside none | limit |", "|---|---|---|---|---|---|"]
    for kind, row in rows.items():
        foreseen, peak = (show_bytes(int(row[name])) for name in ("predicted", "peak"))
        limit = LIMITS.get(kind, "")
        out.append(f"| {kind} | {foreseen} | {peak} | {row['seconds']:.3f} | {row['ratio']:.3f} | {limit} |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 24), ("width", 128), ("context", 256), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--contend")
    chosen = parser.parse_args()
    if chosen.contend:
        torch.set_num_threads(chosen.threads)
        keep_freed_memory()
        pairs.serve(lambda: prepare(chosen.contend, chosen))
        return
    settings = [f"--{key}={getattr(chosen, key)}" for key in ("layers", "width", "context", "batch", "threads")]
    kinds = chosen.kinds.split(",")
    commands = {kind: [__file__, *settings, "--contend", kind] for kind in kinds}
    measured = pairs.measure(commands, chosen.rounds, chosen.threads)
    took = {kind: value.cpu if chosen.threads == 1 else value.wall for kind, value in measured.items()}
    rows = {
        kind: {**measured[kind].facts, "seconds": took[kind], "ratio": took[kind] / took[kinds[0]]} for kind in kinds
    }
    print(table(rows))
    stem = f"recompute_{chosen.layers}_layers"
    facts = {"rows": rows, "spread": {kind: measured[kind].spread for kind in kinds}, "rounds": chosen.rounds}
    write_json(RESULTS / f"{stem}.json", {**facts, "settings": settings, "machine": machine(), "versions": versions()})
    write_text(RESULTS / f"{stem}.md", table(rows))
    points = [Line(kind, [row["peak"] / 1e6], [row["ratio"]], dots=True) for kind, row in rows.items()]
    drawing = lines("Time against memory", points, "peak, MB", "time beside none", from_zero=True)
    write_text(RESULTS / f"{stem}.svg", standing_alone(drawing))


if __name__ == "__main__":
    main()
