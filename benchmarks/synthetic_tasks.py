"""Tasks that tell sequence layers apart: selective copying, induction heads, multi-query associative recall.

`python benchmarks/synthetic_tasks.py [--mixers attention mamba mamba+attention ...] [--tasks ...] [--seconds 20]
[--seeds 3] [--first-seed 0]`. Each arm is a two-layer Fairway model trained on fresh examples for the same seconds on
one thread; a name with `+` is a pattern over the layers. Accuracy is that of all answers of 1,024 examples no arm has
trained on; the table and the bars show its mean and deviation over the seeds. Takes tasks x mixers x seeds x seconds:
nine arms, three tasks and 20 s about 10 minutes a seed. Rows of seeds and mixers that earlier commands found at the
same settings are kept, so that seeds may be run one by one or side by side.
Selective copying and induction heads: Gu & Dao 2023 (arXiv:2312.00752); recall: Arora et al. 2023 (arXiv:2312.04927).
Shape key: B examples, T tokens, N answers.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

from fairway.core.config import Slot
from fairway.core.device import keep_freed_memory
from fairway.core.probe import machine, versions
from fairway.core.seed import generator
from fairway.core.storage import read_json, write_json
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.optim.parts import OptimizerConfig
from report import RESULTS

MIXERS = (
    "attention", "mamba", "mamba2", "retnet", "rwkv4", "gla", "gated_delta", "ttt_linear", "mamba+attention",
)  # fmt: skip
SYMBOLS = 16
NOISE, MARK, FIRST = 0, 1, 2
VOCABULARY = FIRST + 2 * SYMBOLS
BATCH, TESTED, NOT_ASKED = 64, 1_024, -100

Examples = tuple[Tensor, Tensor]
"""Tokens (B, T), and the answer at each place (B, T), NOT_ASKED where there is none."""


def selective_copying(batch: int, source: torch.Generator, length: int = 64, count: int = 8) -> Examples:
    """Symbols scattered among noise; at the end the model says them again in their order."""
    places_BN = torch.rand(batch, length, generator=source).argsort(1)[:, :count].sort(1).values
    symbols_BN = torch.randint(FIRST, FIRST + SYMBOLS, (batch, count), generator=source)
    story_BT = torch.full((batch, length), NOISE).scatter(1, places_BN, symbols_BN)
    tokens_BT = torch.cat((story_BT, torch.full((batch, count), MARK)), 1)
    return tokens_BT, torch.cat((torch.full((batch, length), NOT_ASKED), symbols_BN), 1)


def induction(batch: int, source: torch.Generator, length: int = 64) -> Examples:
    """One symbol follows a mark somewhere; at the end the mark comes again and asks for it."""
    tokens_BT = torch.randint(FIRST, FIRST + SYMBOLS, (batch, length), generator=source)
    place_B1 = torch.randint(0, length - 3, (batch, 1), generator=source)
    answer_B1 = tokens_BT.gather(1, place_B1 + 1)
    tokens_BT = tokens_BT.scatter(1, place_B1, MARK)
    tokens_BT[:, -1] = MARK
    answers_BT = torch.full((batch, length), NOT_ASKED)
    answers_BT[:, -1:] = answer_B1
    return tokens_BT, answers_BT


def recall(batch: int, source: torch.Generator, pairs: int = 8, length: int = 48) -> Examples:
    """Pairs of key and value, then each key once more among noise: its value is asked for."""
    keys_BN = torch.rand(batch, SYMBOLS, generator=source).argsort(1)[:, :pairs]
    values_BN = torch.randint(0, SYMBOLS, (batch, pairs), generator=source)
    story_BT = torch.stack((FIRST + keys_BN, FIRST + SYMBOLS + values_BN), 2).flatten(1)
    places_BN = torch.rand(batch, length, generator=source).argsort(1)[:, :pairs]
    asked_BT = torch.full((batch, length), NOISE).scatter(1, places_BN, FIRST + keys_BN)
    answers_BT = torch.full((batch, length), NOT_ASKED).scatter(1, places_BN, FIRST + SYMBOLS + values_BN)
    return torch.cat((story_BT, asked_BT), 1), torch.cat((torch.full_like(story_BT, NOT_ASKED), answers_BT), 1)


TASKS: dict[str, Callable[[int, torch.Generator], Examples]] = {
    "selective_copying": selective_copying,
    "induction": induction,
    "recall": recall,
}


def built(mixers: str, width: int, seed: int) -> LanguageModel:
    """Two layers, or one for each mixer of a longer pattern."""
    kinds = mixers.split("+")
    pattern = [{"kind": kind, **({} if kind in ("mamba", "rwkv4") else {"heads": 4})} for kind in kinds]
    settings = {"width": width, "context": 128, "depth": max(2, len(kinds)), "mixer": pattern}
    return ModelConfig.read(settings).build(VOCABULARY, seed)


def trained(model: LanguageModel, task: str, seconds: float, rate: float, seed: int) -> int:
    """Trains with AdamW, by the clock; gives the number of steps."""
    settings: dict[str, Any] = {"kind": "adamw", "lr": rate}
    config = Slot("fairway.optim.optimizer", "adamw").config("adamw").read(settings)
    assert isinstance(config, OptimizerConfig)
    optimizer, start, steps = config.build(model), time.monotonic(), 0
    while (progress := (time.monotonic() - start) / seconds) < 1:
        tokens_BT, answers_BT = TASKS[task](BATCH, generator(seed, task, "train", steps))
        logits_BTV = model.logits(model(tokens_BT).hidden_BTD)
        functional.cross_entropy(logits_BTV.flatten(0, 1), answers_BT.flatten(), ignore_index=NOT_ASKED).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(min(1.0, progress / 0.05, (1 - progress) / 0.3), progress)
        optimizer.zero_grad()
        steps += 1
    return steps


@torch.inference_mode()
def accuracy(model: LanguageModel, task: str) -> float:
    """Share of right answers on examples of a stream of their own, the same for all arms and seeds."""
    tokens_BT, answers_BT = TASKS[task](TESTED, generator(0, task, "test"))
    said_BT = model.logits(model(tokens_BT).hidden_BTD).argmax(-1)
    asked_BT = answers_BT != NOT_ASKED
    return float((said_BT == answers_BT)[asked_BT].float().mean())


def compare(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Every arm; seeds are the outer loop."""
    rows: list[dict[str, Any]] = []
    for seed in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
        for task in chosen.tasks:
            for mixers in chosen.mixers:
                model = built(mixers, chosen.width, seed)
                steps = trained(model, task, chosen.seconds, chosen.rate, seed)
                count = sum(parameter.numel() for parameter in model.parameters())
                found = {"accuracy": accuracy(model, task), "steps": steps, "parameters": count}
                rows.append({"task": task, "mixer": mixers, "seed": seed, **found})
                print(f"  {task:<18}{mixers:<18} seed {seed}: {rows[-1]['accuracy']:.3f} ({steps} steps)", flush=True)
    return rows


def joined(rows: list[dict[str, Any]], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Writes the rows, with those that stand there from earlier commands at the same settings; gives them all."""
    path, measured_on = RESULTS / "synthetic_tasks.json", {"machine": machine(), "versions": versions()}
    same = {**measured_on, "settings": settings}
    if path.exists() and all((before := read_json(path))[key] == value for key, value in same.items()):
        new = {(row["task"], row["mixer"], row["seed"]) for row in rows}
        rows = [row for row in before["runs"] if (row["task"], row["mixer"], row["seed"]) not in new] + rows
    rows = sorted(rows, key=lambda row: (_place(row["mixer"]), row["task"], row["seed"]))
    write_json(path, {**same, "date": date.today().isoformat(), "runs": rows})
    return rows


def _place(mixers: str) -> int:
    return MIXERS.index(mixers) if mixers in MIXERS else len(MIXERS)


def means(rows: list[dict[str, Any]], task: str, mixers: str) -> tuple[float, float]:
    """Mean and standard deviation over the seeds; the deviation of one seed is 0."""
    found = [row["accuracy"] for row in rows if (row["task"], row["mixer"]) == (task, mixers)]
    return statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0


def plot(rows: list[dict[str, Any]], tasks: list[str], mixers: list[str]) -> None:
    """Bars of accuracy, a group for each task."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    _, axis = pyplot.subplots(figsize=(3 + 3 * len(tasks), 4))
    for number, name in enumerate(mixers):
        middle, spread = zip(*(means(rows, task, name) for task in tasks), strict=True)
        places = [index + (number - len(mixers) / 2 + 0.5) * 0.8 / len(mixers) for index in range(len(tasks))]
        axis.bar(places, middle, 0.8 / len(mixers), yerr=spread, label=name)
    axis.axhline(1 / SYMBOLS, color="grey", linestyle=":", label="guessing")
    axis.set_xticks(range(len(tasks)), tasks)
    axis.set(ylabel="accuracy", ylim=(0, 1.05))
    axis.legend(fontsize="small", ncols=2)
    pyplot.tight_layout()
    pyplot.savefig(RESULTS / "synthetic_tasks.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixers", nargs="*", default=list(MIXERS))
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seconds", type=float, default=20.0, help="of training, for each arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    settings = {"seconds": chosen.seconds, "width": chosen.width, "rate": chosen.rate, "batch": BATCH}
    rows = joined(compare(chosen), settings)
    print(f"  {'':<18}" + "".join(f"{task:>20}" for task in chosen.tasks))
    mixers = list(dict.fromkeys(row["mixer"] for row in rows))
    for name in mixers:
        cells = ("{:.3f} +- {:.3f}".format(*means(rows, task, name)) for task in chosen.tasks)
        print(f"  {name:<18}" + "".join(f"{cell:>20}" for cell in cells))
    plot(rows, chosen.tasks, mixers)


if __name__ == "__main__":
    main()
