"""Lottery tickets and RigL against their controls on scikit-learn's digits, paired seeds, with p values.

A network 64-300-100-10. Tickets: trained, pruned by magnitude in rounds, set back to the start (everything anew:
optimizer, order of the data) against the same masks on new weights, and random masks of the same densities. Sparse
training at the same steps and density: RigL against SET against a static mask. Test accuracy; Welch's test, corrected
by Holm. Instability: the error along the line between two trainings of one start with different orders of the data.

Usage: python benchmarks/sparse_training_digits.py [--seeds 5] [--epochs 30] (needs scikit-learn; about ten minutes).
Writes benchmarks/results/sparse_training_digits.{json,md,svg}, or to --folder.
"""

import argparse
import datetime
import itertools
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from fairway.campaign.stats import compare, holm
from fairway.compress.prune.lottery import Weights, error_barrier, find_tickets, interpolated, shuffled
from fairway.compress.topology import densities, moved, random_mask, share_at
from fairway.core.probe import machine, versions
from fairway.core.seed import generator
from fairway.core.storage import write_json, write_text
from fairway.report.chart import Line, lines, standing_alone
from report import RESULTS

SIZES = (64, 300, 100, 10)
TRAINED_ON, BATCH, RATE = 1200, 60, 0.1
TICKET_SPARSITY, ROUNDS = 0.96, 6
SPARSITY, EVERY, SHARE, END = 0.98, 20, 0.3, 0.75
PAIRS = (
    ("ticket", "reinitialised"),
    ("ticket", "random"),
    ("rigl", "set"),
    ("rigl", "static"),
    ("set", "static"),
)


def digits() -> tuple[Tensor, Tensor]:
    """Pixels (N, 64) between 0 and 1 and labels (N), in a fixed random order."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    return torch.tensor(pixels[order] / 16, dtype=torch.float32), torch.tensor(labels[order])


def fresh(seed: int, purpose: str = "start") -> Weights:
    """He's initialisation by layers; biases zero."""
    random, weights = generator(seed, purpose), {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(SIZES)):
        weights[f"w{index}"] = torch.randn(outputs, inputs, generator=random) * (2 / inputs) ** 0.5
        weights[f"b{index}"] = torch.zeros(outputs)
    return weights


def logits(weights: Weights, x: Tensor) -> Tensor:
    """The network's output."""
    for index in range(len(SIZES) - 1):
        x = functional.linear(x, weights[f"w{index}"], weights[f"b{index}"])
        x = functional.relu(x) if index < len(SIZES) - 2 else x
    return x


def accuracy(weights: Weights) -> float:
    """Percent of the test digits named rightly."""
    x, y = digits()
    return 100 * float((logits(weights, x[TRAINED_ON:]).argmax(1) == y[TRAINED_ON:]).float().mean())


def train(weights: Weights, masks: Weights, seed: int, epochs: int, grow: str = "none") -> Weights:
    """Momentum with a linear decay; masked weights are zero throughout. `grow`: how the topology changes."""
    x, y = digits()
    current = {name: value.clone().requires_grad_() for name, value in weights.items()}
    masks = dict(masks)
    speed = {name: torch.zeros_like(value) for name, value in weights.items()}
    total, step = epochs * (TRAINED_ON // BATCH), 0
    for epoch in range(epochs):
        order = torch.randperm(TRAINED_ON, generator=generator(seed, "order", epoch))
        for rows in order.split(BATCH):
            loss = functional.cross_entropy(logits(current, x[rows]), y[rows])
            gradients = dict(zip(current, torch.autograd.grad(loss, list(current.values())), strict=True))
            due = grow != "none" and step > 0 and step % EVERY == 0 and step / total < END
            with torch.no_grad():
                if not (due and grow == "rigl"):
                    update(current, speed, gradients, masks, RATE * (1 - step / total))
                if due:
                    change(current, speed, gradients, masks, grow, share_at(step / total, SHARE, END), (seed, step))
            step += 1
    return {name: value.detach() for name, value in current.items()}


def update(current: Weights, speed: Weights, gradients: Weights, masks: Weights, rate: float) -> None:
    """One step of momentum; masked entries have neither weight nor speed."""
    for name, value in current.items():
        speed[name].mul_(0.9).add_(gradients[name])
        if name in masks:
            speed[name].mul_(masks[name])
        value.sub_(rate * speed[name])
        if name in masks:
            value.mul_(masks[name])


def change(
    current: Weights, speed: Weights, gradients: Weights, masks: Weights, grow: str, share: float, at: tuple[int, int]
) -> None:
    """Drops the least weights and grows as many, by gradient or at random."""
    for name, mask in list(masks.items()):
        random = generator(at[0], "grow", at[1], name)
        score = gradients[name].abs() if grow == "rigl" else torch.rand(mask.shape, generator=random)
        masks[name] = moved(current[name], mask, score, int(share * float(mask.sum())))
        current[name].mul_(masks[name])
        speed[name].mul_(masks[name] * mask)


def tickets(seed: int, epochs: int) -> tuple[dict[str, float], list[float]]:
    """Accuracies of dense network, ticket and controls; and the errors between two trainings of the ticket."""
    names = [f"w{index}" for index in range(len(SIZES) - 1)]

    def whole(weights: Weights, masks: Weights) -> tuple[Weights, Weights]:
        return train(weights, masks, seed, epochs), weights

    start = fresh(seed)
    found = find_tickets(whole, start, names, TICKET_SPARSITY, ROUNDS)
    last = found[-1]
    masks = {name: last.masks[name] for name in names}
    anew = masked(fresh(seed, "anew"), masks)
    chance = shuffled(masks, seed, 0)
    scores = {
        "dense": accuracy(found[0].end),
        "ticket": accuracy(last.end),
        "reinitialised": accuracy(train(anew, masks, seed, epochs)),
        "random": accuracy(train(masked(start, chance), chance, seed, epochs)),
    }
    other = train(last.start, masks, seed + 10_000, epochs)
    line = [100 - accuracy(interpolated(last.end, other, share / 10)) for share in range(11)]
    return scores, line


def masked(weights: Weights, masks: Weights) -> Weights:
    """Removed weights zero."""
    return {name: value * masks[name] if name in masks else value.clone() for name, value in weights.items()}


def sparse(seed: int, epochs: int) -> dict[str, float]:
    """Accuracies of the three ways to train sparse, from the same masks and weights (scaled for the inputs left)."""
    start = fresh(seed)
    shapes = {name: tuple(value.shape) for name, value in start.items() if value.ndim == 2}
    wanted = densities(shapes, SPARSITY, "erk")
    masks = {n: random_mask(shapes[n], density, generator(seed, "mask", n)) for n, density in wanted.items()}
    ways = {"static": "none", "set": "set", "rigl": "rigl"}
    scaled = {name: value * wanted.get(name, 1.0) ** -0.5 for name, value in start.items()}
    run = partial(train, masked(scaled, masks), masks, seed, epochs)
    return {name: accuracy(run(grow=grow)) for name, grow in ways.items()}


def table(arms: dict[str, list[float]]) -> tuple[str, list[dict[str, Any]]]:
    """Markdown of the arms and of the tests, and the tests as JSON."""
    tests = {f"{first} - {second}": compare(arms[second], arms[first]) for first, second in PAIRS}
    corrected = holm({name: test.p for name, test in tests.items()})
    out = ["| arm | n | accuracy % | sigma |", "|---|---|---|---|"]
    out += [
        f"| {name} | {len(found)} | {statistics.fmean(found):.2f} | {statistics.stdev(found):.2f} |"
        for name, found in arms.items()
    ]
    out += ["", "| difference | points | 95 % interval | p (Holm) | |", "|---|---|---|---|---|"]
    for name, test in tests.items():
        verdict = test.verdict(corrected[name])
        interval = f"{test.low:.2f} .. {test.high:.2f}"
        out.append(f"| {name} | {test.effect:+.2f} | {interval} | {corrected[name]:.4f} | {verdict} |")
    rows = [{"pair": name, **vars(test), "p_holm": corrected[name]} for name, test in tests.items()]
    return "\n".join(out) + "\n", rows


def main() -> None:
    """Trains every arm at every seed, prints and writes the tables and the drawing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args()
    arms: dict[str, list[float]] = {}
    between: list[list[float]] = []
    for seed in range(given.seeds):
        scores, line = tickets(seed, given.epochs)
        between.append(line)
        for name, score in {**scores, **sparse(seed, given.epochs)}.items():
            arms.setdefault(name, []).append(score)
        print(f"seed {seed}: " + ", ".join(f"{name} {found[-1]:.2f}" for name, found in arms.items()), flush=True)
    text, tests = table(arms)
    barriers = [error_barrier(line) for line in between]
    text += f"\nError barrier of the ticket between two orders of the data: {statistics.fmean(barriers):.2f} points.\n"
    print(text)
    record = {"date": datetime.date.today().isoformat(), "machine": machine(), "versions": versions()}
    record |= {"arms": arms, "tests": tests, "between": between, "barriers": barriers, "epochs": given.epochs}
    write_json(given.folder / "sparse_training_digits.json", record)
    write_text(given.folder / "sparse_training_digits.md", text)
    shares = [share / 10 for share in range(11)]
    curves = [Line(f"seed {seed}", shares, line, dots=True) for seed, line in enumerate(between)]
    drawing = lines("Error between two trainings of a ticket", curves, "share of the second", "test error %")
    write_text(given.folder / "sparse_training_digits.svg", standing_alone(drawing))


if __name__ == "__main__":
    main()
