"""Studies over widths: does a model change its activations, and want its learning rate, alike at every width?

`coordinate_check` measures how much each layer's output has changed after some steps; in the standard parametrisation
the change grows with the width, in muP it does not. `transfer` trains every width at every learning rate and finds
the best one for each. Yang et al. 2022 (arXiv:2203.03466), sections D.1 and 5.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fairway.core import device as machine
from fairway.core.budget import Budget
from fairway.core.config import override
from fairway.core.errors import ConfigError, TrainingError
from fairway.core.log import Event, Listener
from fairway.core.storage import Journal, read_journal
from fairway.data.batches import Batches
from fairway.data.manifest import Manifest
from fairway.model.block import Block
from fairway.optim.mup import parametrise
from fairway.optim.parts import OptimizerConfig
from fairway.optim.widths import at_width
from fairway.report.chart import Line, lines, standing_alone
from fairway.run import Recipe
from fairway.train.loop import Loop, TrainConfig
from fairway.train.meter import Meter

Kind = Literal["standard", "mup"]
KINDS: tuple[Kind, ...] = ("standard", "mup")


@dataclass(frozen=True)
class CoordinateCheck:
    """Changes of activations by width."""

    widths: tuple[int, ...]
    steps: int
    changes: dict[str, dict[str, list[float]]]
    """Parametrisation, then layer, then one root mean square change for each width."""
    slopes: dict[str, dict[str, float]]
    """The same, as the exponent of the width."""

    def worst(self, kind: Kind) -> float:
        """The steepest slope of a parametrisation."""
        return max(self.slopes[kind].values(), key=abs)


@dataclass(frozen=True)
class Transfer:
    """Losses by width and learning rate."""

    widths: tuple[int, ...]
    factors: tuple[float, ...]
    """On every learning rate of the recipe."""
    losses: dict[str, list[list[float]]]
    """Parametrisation, then width, then factor: mean nats over the last tenth of the steps, mean over seeds."""
    best: dict[str, list[float]]
    """The best factor at each width."""

    def shift(self, kind: Kind) -> float:
        """How far the best rate moves over the widths, in powers of two."""
        logs = [math.log2(factor) for factor in self.best[kind]]
        return max(logs) - min(logs)

    def at_the_edge(self, kind: Kind) -> list[int]:
        """Widths whose best factor is the first or the last, so that a better one may lie beyond."""
        edges = (self.factors[0], self.factors[-1])
        return [width for width, best in zip(self.widths, self.best[kind], strict=True) if best in edges]


def coordinate_check(
    recipe: Recipe, manifest: Manifest, widths: Sequence[int], steps: int, seeds: int, listener: Listener
) -> CoordinateCheck:
    """Trains every width for a few steps on one batch, in both parametrisations.

    At rates far below the best one the logits' change falls at small widths even in muP: of it, the part that random
    initial weights make falls as 1/sqrt(width), and only the part that was learned stays.
    """
    sums: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    cases = list(product(KINDS, enumerate(widths), range(seeds)))
    for done, (kind, (place, width), seed) in enumerate(cases):
        listener(Event("check", done / len(cases), message=f"{kind}, width {width}"))
        with tempfile.TemporaryDirectory() as folder:
            loop = _loop(recipe, manifest, width, widths[0], kind, 1.0, steps, recipe.seed + seed, Path(folder))
            for layer, change in _changes(loop, steps).items():
                found = sums[kind].setdefault(layer, [0.0] * len(widths))
                found[place] += change / seeds
    listener(Event("check", 1.0))
    slopes: dict[str, dict[str, float]] = {
        kind: {layer: slope(widths, found) for layer, found in sums[kind].items()} for kind in KINDS
    }
    return CoordinateCheck(tuple(widths), steps, sums, slopes)


def transfer(
    recipe: Recipe,
    manifest: Manifest,
    widths: Sequence[int],
    factors: Sequence[float],
    steps: int,
    seeds: int,
    listener: Listener,
    record: Path | None = None,
) -> Transfer:
    """Trains every width at every factor on the recipe's learning rates, in both parametrisations.

    At the base width, the first, both are the same model, trained once. Runs that the file `record` names with the
    same recipe, base width and steps are not trained again; each new one is added when it is done, so a sweep that was
    stopped goes on.
    """
    losses: dict[str, list[list[float]]] = {kind: [[0.0] * len(factors) for _ in widths] for kind in KINDS}
    cases = list(product(KINDS, enumerate(widths), enumerate(factors), range(seeds)))
    trained = _Trained(record, {"recipe": recipe.fingerprint(), "base": widths[0], "steps": steps})
    for done, (kind, (row, width), (column, factor), seed) in enumerate(cases):
        listener(Event("transfer", done / len(cases), message=f"{kind}, width {width}, {factor:g} times the rate"))
        own = kind if width != widths[0] else KINDS[0]

        def train(kind: Kind = own, width: int = width, factor: float = factor, seed: int = seed) -> float:
            with tempfile.TemporaryDirectory() as folder:
                seeded = recipe.seed + seed
                loop = _loop(recipe, manifest, width, widths[0], kind, factor, steps, seeded, Path(folder))
                return _final_loss(loop)

        losses[kind][row][column] += trained.loss((own, width, factor, seed), train) / seeds
    listener(Event("transfer", 1.0))
    best: dict[str, list[float]] = {kind: [factors[_least(row)] for row in losses[kind]] for kind in KINDS}
    return Transfer(tuple(widths), tuple(factors), losses, best)


class _Trained:
    """Losses of runs that are done, in a file of one line each; only in memory without a file."""

    def __init__(self, path: Path | None, setting: dict[str, Any]) -> None:
        self.path = path
        self.setting = setting
        lines = read_journal(path) if path is not None and path.exists() else []
        mine = [line for line in lines if all(line.get(key) == value for key, value in setting.items())]
        self.losses = {tuple(line["run"]): math.inf if line["nats"] is None else line["nats"] for line in mine}

    def loss(self, run: tuple[str, int, float, int], train: Callable[[], float]) -> float:
        """Of a run: parametrisation, width, factor, seed."""
        if run not in self.losses:
            self.losses[run] = nats = train()
            if self.path is not None:
                with Journal(self.path) as journal:
                    journal.append({**self.setting, "run": run, "nats": nats if math.isfinite(nats) else None})
        return self.losses[run]


def whole_numbers(option: str, text: str) -> list[int]:
    """Two or more rising whole numbers with commas between them; raises `ConfigError` otherwise."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) < 2 or numbers != sorted(set(numbers)):
        raise ConfigError(f'{option} is "{text}"; two or more rising whole numbers with commas would work.')
    return numbers


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Least-squares exponent of the width; 0 where the values are all zero."""
    if not all(value > 0 for value in values):
        return 0.0 if not any(values) else math.nan
    x, y = torch.tensor(widths).double().log(), torch.tensor(values).double().log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def draw_check(found: CoordinateCheck, kind: Kind) -> str:
    """The changes over the widths, both in powers of two, as an SVG file."""
    x = [math.log2(width) for width in found.widths]
    curves = [
        Line(layer, x, [math.log2(value) if value > 0 else math.nan for value in values], dots=True)
        for layer, values in found.changes[kind].items()
    ]
    title = f"Change of activations after {found.steps} steps, {kind}"
    return standing_alone(lines(title, curves, "width, powers of two", "change, powers of two"))


def draw_transfer(found: Transfer, kind: Kind) -> str:
    """Loss over the learning rate, one curve for each width with its best rate in the legend, as an SVG file."""
    x = [math.log2(factor) for factor in found.factors]
    top = _shown_top(found)
    curves = [
        Line(f"{width}: best 2^{math.log2(best):g}", x, [min(nats, top) for nats in row], dots=True)
        for width, row, best in zip(found.widths, found.losses[kind], found.best[kind], strict=True)
    ]
    title = f"Loss by learning rate, {kind}; what lies above the edge is cut"
    return standing_alone(lines(title, curves, "factor on the rates, powers of two", f"nats, {kind}, by width"))


def _shown_top(found: Transfer) -> float:
    """The highest loss that both drawings show: far enough above every width's best for its valley to be seen."""
    rows = [row for those in found.losses.values() for row in those]
    finite = sorted(nats for row in rows for nats in row if math.isfinite(nats))
    least = [min(row) for row in rows if math.isfinite(min(row))]
    return max(3 * median(finite) - 2 * finite[0], *least) if finite else 0.0


def _loop(
    recipe: Recipe,
    manifest: Manifest,
    width: int,
    base: int,
    kind: Kind,
    factor: float,
    steps: int,
    seed: int,
    folder: Path,
) -> Loop:
    """A loop at a width, with the recipe's rates times a factor; muP grows it from the base width."""
    vocabulary, device = manifest.tokenizer.vocabulary, machine.select(recipe.device)
    train = _without_frills(recipe.train, factor)
    config, scales = at_width(recipe.model, width), None
    if kind == "mup":
        grown = parametrise(config, at_width(recipe.model, base), vocabulary, train.optimizer)
        model, scales = grown.build(vocabulary, seed, device), grown.scales
    else:
        model = config.build(vocabulary, seed, device)
    batches = Batches(manifest, seed)
    return Loop(model, batches, train, Budget(steps=steps), seed, folder, {}, Meter(1.0, 0.0), (), scales=scales)


def _without_frills(train: TrainConfig, factor: float) -> TrainConfig:
    plain = override(train.plain(), ["checkpoint_every=1000000", "average.horizon=0", "average.kind=ema"])
    return TrainConfig.read(
        plain | {"optimizer": _at_rate(train.optimizer, factor).plain(), "patience": 1, "stages": {}}
    )


def _at_rate(optimizer: OptimizerConfig, factor: float) -> OptimizerConfig:
    plain: dict[str, Any] = optimizer.plain()
    rates = {role: None if rate is None else rate * factor for role, rate in plain["rates"].items()}
    return optimizer.model_copy(update={"lr": optimizer.lr * factor, "rates": type(optimizer.rates).read(rates)})


def _changes(loop: Loop, steps: int) -> dict[str, float]:
    """Root mean square change of the output of every layer and of the logits, on the batch that is trained on."""
    batch, _ = loop.batch_at(0.0)
    before = _activations(loop, batch.tokens_BT)
    loop.model.train()
    for step in range(steps):
        loop.accumulate(batch, step / steps)
        loop.layout.update(1.0, step / steps)
    after = _activations(loop, batch.tokens_BT)
    return {layer: float((after[layer] - x).double().square().mean().sqrt()) for layer, x in before.items()}


@torch.no_grad()
def _activations(loop: Loop, tokens_BT: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            found[layer] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return hook

    model = loop.model.eval()
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    named = [("embedding", model.embedding), *((f"layer {index + 1}", one) for index, one in enumerate(blocks))]
    handles = [module.register_forward_hook(keep(layer)) for layer, module in named]
    try:
        output = model(tokens_BT[:, :-1].to(model.device))
        found["logits"] = model.logits(output.hidden_BTD)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _final_loss(loop: Loop) -> float:
    """Mean loss over the last tenth of the steps; infinite where training diverged."""

    def watch(event: Event) -> None:
        if event.figures.get("train/loss", 0.0) > 100.0:
            raise TrainingError("diverged")

    try:
        loop.run(watch)
    except TrainingError:
        return math.inf
    losses = [record["train/loss"] for record in read_journal(loop.folder / "metrics.jsonl")]
    return fmean(losses[-max(1, len(losses) // 10) :])


def _least(values: Sequence[float]) -> int:
    return min(range(len(values)), key=lambda index: values[index])
