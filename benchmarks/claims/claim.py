"""A claim: a question, the arms that answer it, what they hold equal, and the comparison that was predicted.

A claim is a YAML file, written before its first run. Every arm is the base recipe with overrides; what the claim says
is equal is checked before anything is trained, so a wrong comparison is refused, not run.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fairway.compress.predict import predict_bytes, predict_strength
from fairway.core.budget import Bytes, Seconds
from fairway.core.config import Config, read_yaml
from fairway.core.errors import ConfigError
from fairway.model.parts import active_parameters
from fairway.plan import require_room, vocabulary_of
from fairway.run import Recipe, load_recipe

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
TUNING_SEED = 1_000
RATES = "rates"
"""In a grid: a factor on every learning rate of the arm."""
_BYTES_PER_MERGE = 3.0

Equal = Literal["parameters", "active", "flops", "bytes", "seconds", "steps"]
Metric = Literal[
    "bits_per_byte", "beyond_context", "steps_to_loss", "seconds_to_loss", "teacher_bits_per_byte", "repetition",
    "sameness",
]  # fmt: skip
Choices = dict[str, tuple[Any, ...]]


def _as_arm(value: Any) -> Any:
    return {"overrides": value} if isinstance(value, (list, tuple)) else value


class Arm(Config):
    """One way of doing it; a plain list stands for its overrides."""

    overrides: tuple[str, ...] = ()
    """`section.field=value` on top of the claim's."""
    grid: Choices | None = None
    """Values to tune over at a seed of its own, by dotted path; the claim's grid if not given."""
    length: float = Field(default=1.0, gt=0)
    """Training seconds or steps, as a multiple of the claim's."""
    taught: bool = False
    """Learns from the claim's teacher."""
    native: bool = True
    """Whether the native kernels serve its runs."""
    extension: str | None = None
    """How positions go on beyond the trained context; arms that differ in this alone share their training."""


class Comparison(Config):
    """A prediction: the metric of `arm` is lower than that of `than`, by more than `margin`."""

    arm: str
    than: str
    metric: Metric = "bits_per_byte"
    margin: float = 0.0
    """Negative for "no worse than by so much"; for steps and seconds, of the logarithm."""


class Claim(Config):
    """What is asked, and how it is answered."""

    question: str
    prediction: str
    """What was expected before the first run, in words."""
    source: str
    """Who claims it."""
    base: str = "benchmarks/claims/base/small.yaml"
    overrides: tuple[str, ...] = ()
    """On the base recipe, for all arms."""
    arms: dict[str, Annotated[Arm, BeforeValidator(_as_arm)]] = Field(min_length=2)
    teacher: Annotated[Arm, BeforeValidator(_as_arm)] | None = None
    """A model trained once a seed, from which the taught arms learn."""
    comparisons: tuple[Comparison, ...] = Field(min_length=1)
    equal: tuple[Equal, ...] = Field(min_length=1)
    tolerance: float = Field(default=0.02, ge=0, lt=1)
    """Relative difference between arms that still counts as equal."""
    grid: Choices = Field(default_factory=dict)
    """Values that every arm without a grid of its own is tuned over."""
    seeds: int = Field(default=3, ge=1)
    bytes: Bytes = 300_000
    """Cap of every artifact."""
    seconds: Seconds | None = None
    """Training time of each run; this or `steps`."""
    steps: int | None = Field(default=None, ge=1)
    context: int | None = Field(default=None, ge=2)
    """Tokens of the windows that `beyond_context` is measured on."""

    @model_validator(mode="after")
    def _hangs_together(self) -> "Claim":
        if (self.seconds is None) == (self.steps is None):
            raise ValueError("either seconds or steps must be given, not both")
        if self.measure not in self.equal:
            raise ValueError(f"the runs are measured in {self.measure}, so equal must name {self.measure}")
        known = set(self.arms)
        for one in self.comparisons:
            if not {one.arm, one.than} <= known or one.arm == one.than:
                raise ValueError(f"{one.arm} against {one.than}: two of the arms {', '.join(known)} are needed")
            if one.metric == "beyond_context" and self.context is None:
                raise ValueError("beyond_context needs a context")
        if any(arm.taught for arm in self.arms.values()) != (self.teacher is not None):
            raise ValueError("a teacher and arms that are taught go together")
        return self

    @property
    def measure(self) -> Literal["seconds", "steps"]:
        """What limits a run."""
        return "seconds" if self.seconds is not None else "steps"

    def grid_of(self, arm: str) -> Choices:
        """The values an arm is tuned over."""
        own = self.arms[arm].grid
        return self.grid if own is None else own

    def settings(self, arm: str, limit: int | None = None) -> list[tuple[str, ...]]:
        """Every combination of an arm's grid, as overrides; at most the first `limit`."""
        grid = self.grid_of(arm)
        named = [[f"{path}={value}" for value in values] for path, values in grid.items()]
        return list(itertools.product(*named))[:limit]

    def recipe(self, arm: str, seed: int, chosen: Sequence[str] = (), extra: Sequence[str] = ()) -> Recipe:
        """The recipe of one run; `extra` overrides everything else."""
        return self._recipe(self.arms[arm], seed, chosen, extra)

    def teacher_recipe(self, seed: int, extra: Sequence[str] = ()) -> Recipe:
        """The recipe of the model that teaches."""
        assert self.teacher is not None
        return self._recipe(self.teacher, seed, (), extra)

    def _recipe(self, arm: Arm, seed: int, chosen: Sequence[str], extra: Sequence[str]) -> Recipe:
        length = f"budget.{self.measure}={self._length(arm)}"
        factor = 1.0
        assignments = [*self.overrides, f"budget.bytes={self.bytes}", length, f"seed={seed}", *arm.overrides]
        for setting in chosen:
            path, _, value = setting.partition("=")
            if path == RATES:
                factor = float(value)
            else:
                assignments.append(setting)
        if not arm.taught:
            extra = [setting for setting in extra if not setting.startswith("distill.")]
        return at_rates(load_recipe(ROOT / self.base, [*assignments, *extra]), factor)

    def _length(self, arm: Arm) -> float | int:
        return round(self.steps * arm.length) if self.steps is not None else (self.seconds or 0.0) * arm.length


def read_claim(name: str) -> Claim:
    """A claim by its name, or by the path of its file."""
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"There is no claim {name}; {', '.join(names())} would work.")
    return Claim.read(read_yaml(path), origin=path.name)


def names() -> list[str]:
    """Every claim there is."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def at_rates(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with every learning rate times a factor."""
    if factor == 1.0:
        return recipe
    plain = recipe.plain()
    optimizer = plain["train"]["optimizer"]
    optimizer["lr"] *= factor
    rates = optimizer["rates"]
    optimizer["rates"] = {role: None if rate is None else rate * factor for role, rate in rates.items()}
    return Recipe.read(plain)


@dataclass(frozen=True)
class Size:
    """What an arm costs, known before training."""

    parameters: int
    active: int
    flops: float
    """Forward, per token of the training context."""
    fullest: int
    """Bytes that its artifact would take at the finest step."""
    predicted: int


def size_of(recipe: Recipe) -> Size:
    """The costs of one arm; raises `BudgetError` where it cannot fit the cap."""
    vocabulary = vocabulary_of(recipe)
    require_room(recipe, vocabulary)
    model, compress, cap = recipe.model.skeleton(vocabulary), recipe.compress, recipe.budget.bytes
    table = round(_BYTES_PER_MERGE * max(0, vocabulary - 257))
    strength = predict_strength(recipe.model, vocabulary, table, cap, compress)
    return Size(
        sum(parameter.numel() for parameter in model.parameters()),
        active_parameters(model),
        model.flops(recipe.model.context),
        predict_bytes(recipe.model, vocabulary, table, compress.finest, compress),
        predict_bytes(recipe.model, vocabulary, table, strength, compress),
    )


def check(claim: Claim, chosen: dict[str, Sequence[str]] | None = None) -> dict[str, Size]:
    """The costs of every arm, once all that the claim promises to be equal is; raises `ConfigError` otherwise."""
    first: dict[str, Sequence[str]] = {arm: next(iter(claim.settings(arm))) for arm in claim.arms}
    sizes = {arm: size_of(claim.recipe(arm, 0, (chosen or first)[arm])) for arm in claim.arms}
    for what in claim.equal:
        if what == "bytes":
            for arm, size in sizes.items():
                if size.fullest < claim.bytes * (1 - claim.tolerance):
                    raise ConfigError(
                        f"{arm} would take {size.fullest:,} bytes even at the finest step, so it cannot use the "
                        f"{claim.bytes:,} that it may; a smaller cap or a larger model would work."
                    )
            continue
        values = {arm: _spent(claim, arm, sizes[arm], what) for arm in claim.arms}
        low, high = min(values.values()), max(values.values())
        if high > low * (1 + claim.tolerance):
            shown = ", ".join(f"{arm} {value:,.6g}" for arm, value in values.items())
            raise ConfigError(f"The claim promises equal {what}, but they differ: {shown}.")
    return sizes


def _spent(claim: Claim, arm: str, size: Size, what: Equal) -> float:
    if what in ("seconds", "steps"):
        teacher = claim.teacher.length if claim.teacher is not None and claim.arms[arm].taught else 0.0
        return claim.arms[arm].length + teacher
    return float(getattr(size, what))
