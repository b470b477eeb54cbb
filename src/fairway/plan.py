"""What a recipe will cost before it is run, and recipes sized to a budget.

`estimate` counts parameters, artifact bytes, FLOPs and memory, times a few real training steps on random tokens, and
says which budget binds. `fit_to_budget` chooses width, layers and vocabulary for a cap of bytes and a time.
"""

import math
import statistics
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fairway.compress.predict import gaussian_bits, predict_bytes, predict_strength
from fairway.core import device as machine
from fairway.core.budget import Budget, show_bytes
from fairway.core.errors import BudgetError, ConfigError
from fairway.core.log import Event, Listener
from fairway.core.probe import gemm_ceiling
from fairway.core.seed import generator
from fairway.data.batches import Batch, Batches
from fairway.model.census import parameters_by_part
from fairway.model.parts import active_parameters
from fairway.run import Recipe
from fairway.train.loop import Loop
from fairway.train.meter import Meter
from fairway.train.recomputation import measure
from fairway.train.rewinding import course_of
from fairway.train.segmentation import Prediction

BITS_PER_PARAMETER = 3.6
"""Of a whole artifact, tables and tokenizer included, at the clip where a larger model stops paying."""
TOKENS_PER_PARAMETER = 4.0
"""Fewer training tokens than this, and a smaller model learns more in the same time."""
EMBEDDING_SHARE = 0.2
"""Largest share of the parameters that the token table may take."""
WIDTH_PER_LAYER = 32.0
"""Preferred ratio of width to layers."""
VOCABULARIES = (512, 1024, 2048, 4096, 8192, 16384, 32768)

_SIZES = ("model.width", "model.depth.layers", "data.tokenizer.vocabulary")
_PREFLIGHT_STEPS = 4
_BYTES_PER_MERGE = 3.0
_COARSEST = 2.0
_ENOUGH_BITS = 5.0
"""More bits than this a weight are worth less than more weights."""
_CPU_RATE = {True: 1.2e11, False: 4e10}
_GPU_RATE = 1.5e14


@dataclass(frozen=True)
class Plan:
    """A recipe's costs, before training."""

    parameters: dict[str, int]
    """By part: embedding, mixer, ffn, norm, head, other."""
    active_parameters: int
    """Parameters that one token uses: all but those of experts not chosen."""
    vocabulary: int
    artifact_bytes: int
    """Predicted size of the file, at the finest step that fits the cap."""
    bits_per_weight: float
    """Of the matrices, at that step."""
    bytes_cap: int
    flops_per_token: float
    """Forward and backward."""
    total_flops: float
    peak_memory_bytes: int
    """Most that this process has held so far, trial steps and interpreter included; on a GPU, of its memory."""
    state_bytes: int
    """Weights, gradients, optimizer state and averages."""
    saved_activation_bytes: int
    """What autograd keeps for the backward pass of a step, beside what recomputation keeps of the blocks."""
    recomputation: str
    """Kind of recomputation."""
    predicted_activation_bytes: int
    """What the blocks keep at the peak of a step, by the plan of that kind."""
    recomputed_blocks: float
    """Blocks that a step runs once more."""
    step_seconds: float
    first_step_seconds: float
    tokens_per_step: int
    tokens_per_second: float
    flops_per_second: float
    mfu: float
    """`flops_per_second` over those of a matrix product, measured in the same process."""
    steps: int
    """That fit the time, or the fixed number; of all trainings together."""
    trainings: int
    """That the run is divided into; one, unless a technique such as lottery tickets begins again."""
    training_steps: int
    """Of one of them."""
    rewind_step: int
    """Step of the first at which the later ones begin."""
    tokens: int
    """Of one training, which are all that the weights to keep have seen."""
    tokens_per_parameter: float
    seconds: float
    """Of training."""
    binding: str
    """`bytes`, `time`, `both`, `neither` or `steps`: what stops the model from being better."""
    advice: str
    exports: dict[str, int] = field(default_factory=dict)
    """Bytes of the weights in other forms."""

    @property
    def total_parameters(self) -> int:
        """All parts together."""
        return sum(self.parameters.values())


def estimate(recipe: Recipe, listener: Listener, *, vocabulary: int | None = None) -> Plan:
    """The costs of a recipe; `vocabulary` is needed only where the tokenizer's settings do not tell it.

    Trains a few steps on random tokens, in a temporary folder. Raises `BudgetError` where the artifact cannot fit the
    cap at all.
    """
    vocabulary = vocabulary or vocabulary_of(recipe)
    listener(Event("plan", 0.1))
    skeleton = recipe.model.skeleton(vocabulary)
    parameters = parameters_by_part(skeleton)
    predicted, bits = _artifact(recipe, vocabulary)
    flops_per_token = 3.0 * skeleton.flops(recipe.model.context)
    listener(Event("plan", 0.3))
    trial = _preflight(recipe, vocabulary)
    listener(Event("plan", 1.0))
    tokens_per_step = recipe.train.batch * recipe.model.context
    length = _length(recipe, trial)
    count = sum(parameters.values())
    tokens = length["training_steps"] * tokens_per_step
    rate = flops_per_token * tokens_per_step / trial.step_seconds
    binding, advice = _binding(recipe.budget, bits, tokens / count)
    return Plan(
        parameters=parameters,
        active_parameters=active_parameters(skeleton),
        vocabulary=vocabulary,
        artifact_bytes=predicted,
        bits_per_weight=bits,
        bytes_cap=recipe.budget.bytes,
        flops_per_token=flops_per_token,
        total_flops=flops_per_token * tokens_per_step * length["steps"],
        peak_memory_bytes=trial.peak_bytes,
        state_bytes=trial.held_bytes,
        saved_activation_bytes=trial.saved_bytes,
        recomputation=trial.recomputation,
        predicted_activation_bytes=trial.prediction.bytes,
        recomputed_blocks=trial.prediction.work,
        step_seconds=trial.step_seconds,
        first_step_seconds=trial.first_seconds,
        tokens_per_step=tokens_per_step,
        tokens_per_second=tokens_per_step / trial.step_seconds,
        flops_per_second=rate,
        mfu=rate / _product_rate(recipe),
        tokens=tokens,
        tokens_per_parameter=tokens / count,
        **length,
        binding=binding,
        advice=advice,
        exports={"float32": 4 * count, "bfloat16": 2 * count, "int8 by rows": count + 4 * _rows(skeleton)},
    )


def fit_to_budget(recipe: Recipe, *, fixed: Collection[str] = ()) -> Recipe:
    """The recipe with width, layers and vocabulary chosen for its budget; paths named in `fixed` stay as they are.

    The model gets `8 bytes / 3.6` parameters, or as many as can be shown four tokens each in the time, if that is less.
    The choice depends on the recipe and on the kind of machine only, so the same command gives the same recipe again.
    """
    target = _target_parameters(recipe)
    free = {path for path in _SIZES if not any(_names(name, path) for name in fixed)}
    if "data.tokenizer.vocabulary" in free and hasattr(recipe.data.tokenizer, "vocabulary"):
        fitting = [size for size in VOCABULARIES if size * _width_for(target) <= EMBEDDING_SHARE * target]
        recipe = _with(recipe, {"data.tokenizer.vocabulary": max(fitting, default=VOCABULARIES[0])})
    vocabulary = vocabulary_of(recipe)
    candidates = _candidates(recipe, free, vocabulary, target)
    best = min(candidates, key=lambda candidate: _misfit(*candidate, target), default=None)
    if best is None:
        raise BudgetError(
            f"No model of this kind fits {show_bytes(recipe.budget.bytes)} in {recipe.budget.seconds:g} s; "
            "a larger --bytes, or sizes of your own (model.width=... model.depth=...), would work."
        )
    _, width, layers = best
    return _with(recipe, {"model.width": width, "model.depth.layers": layers})


def vocabulary_of(recipe: Recipe) -> int:
    """Ids of the recipe's tokenizer; raises `ConfigError` where only the prepared data could tell."""
    size = known_vocabulary(recipe)
    if size is None:
        raise ConfigError(
            f'The vocabulary of the "{recipe.data.tokenizer.kind}" tokenizer is known only once the data is prepared, '
            "so there is nothing to plan by; a tokenizer with a `vocabulary` setting would work."
        )
    return size


def known_vocabulary(recipe: Recipe) -> int | None:
    """Ids of the recipe's tokenizer as far as its settings tell."""
    tokenizer = recipe.data.tokenizer
    size = getattr(tokenizer, "vocabulary", None) or getattr(tokenizer.made, "vocabulary", None)
    return size if isinstance(size, int) else None


@dataclass(frozen=True)
class _Trial:
    step_seconds: float
    first_seconds: float
    saved_bytes: int
    held_bytes: int
    peak_bytes: int
    recomputation: str
    prediction: Prediction


class _RandomTokens(Batches):
    """Batches of random tokens for timing; no text is needed."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self.vocabulary, self.seed = vocabulary, seed

    def rows(self, first: int, count: int, context: int) -> Batch:
        source = generator(self.seed, "preflight", first)
        tokens_BT = torch.randint(self.vocabulary, (count, context + 1), generator=source)
        return Batch(tokens_BT, torch.zeros_like(tokens_BT, dtype=torch.bool))


def _preflight(recipe: Recipe, vocabulary: int) -> _Trial:
    """Times real steps of the recipe's own loop, and counts what autograd keeps."""
    machine.use_threads()
    model = recipe.model.build(vocabulary, recipe.seed, machine.select(recipe.device))
    took: list[float] = []
    saved: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not took and storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def watch(event: Event) -> None:
        if "step_seconds" in event.figures:
            took.append(event.figures["step_seconds"])

    with tempfile.TemporaryDirectory() as folder:
        budget = recipe.budget.model_copy(update={"steps": _PREFLIGHT_STEPS})
        batches = _RandomTokens(vocabulary, recipe.seed)
        loop = Loop(model, batches, recipe.train, budget, recipe.seed, Path(folder), {}, Meter(1.0, 0.0))
        with saved_tensors_hooks(note, lambda tensor: tensor):
            loop.run(watch)
        rows = batches.rows(0, recipe.train.micro_batch or recipe.train.batch, recipe.model.context)
        with loop.precision.forward():
            costs = measure(model, rows.tokens_BT[:, :-1].to(model.device))
        held = sum(tensor.nbytes for tensor in (*loop.optimizer.state().values(), *loop.average.state().values()))
    held += 2 * sum(parameter.nbytes for parameter in model.parameters())
    peak = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else machine.peak_memory()
    prediction = loop.recompute.predict(costs)
    return _Trial(
        statistics.median(took[1:]), took[0], sum(saved.values()), held, peak, loop.recompute.kind, prediction
    )


def _product_rate(recipe: Recipe) -> float:
    """FLOP/s of a matrix product in the precision of training."""
    device = machine.select(recipe.device)
    half = recipe.train.precision.kind != "fp32" and machine.fast_bfloat16(device.type)
    return gemm_ceiling(torch.bfloat16 if half else torch.float32, device, seconds=0.2)


def _length(recipe: Recipe, trial: _Trial) -> dict[str, Any]:
    """Seconds, steps and trainings of the run, as fields of a `Plan`."""
    budget, course = recipe.budget, course_of(recipe.compress.prune.hooks(recipe.seed))
    fitting = 1 + int(max(0.0, budget.seconds - trial.first_seconds) / trial.step_seconds)
    whole, early = course.divided(budget.steps or fitting)
    steps = course.steps(whole)
    seconds = budget.seconds if budget.steps is None else trial.first_seconds + (steps - 1) * trial.step_seconds
    divided = {"trainings": course.trainings, "training_steps": whole, "rewind_step": early}
    return {"seconds": seconds, "steps": steps, **divided}


def require_room(recipe: Recipe, vocabulary: int) -> None:
    """Raises `BudgetError` where even the coarsest step would give an artifact above the cap."""
    least = predict_bytes(recipe.model, vocabulary, _tokenizer_bytes(vocabulary), _COARSEST, recipe.compress)
    cap = recipe.budget.bytes - recipe.compress.margin
    if least > cap:
        raise BudgetError(
            f"This model takes about {show_bytes(least)} even at the coarsest step; the cap is {show_bytes(cap)}. "
            "A smaller model (--bytes sizes it), or a larger budget.bytes, would work."
        )


def _artifact(recipe: Recipe, vocabulary: int) -> tuple[int, float]:
    """Predicted bytes, and bits per weight of the matrices."""
    require_room(recipe, vocabulary)
    size, config = _tokenizer_bytes(vocabulary), recipe.compress
    strength = predict_strength(recipe.model, vocabulary, size, recipe.budget.bytes, config)
    return predict_bytes(recipe.model, vocabulary, size, strength, config), gaussian_bits(strength)


def _tokenizer_bytes(vocabulary: int) -> int:
    return round(_BYTES_PER_MERGE * max(0, vocabulary - 257))


def _binding(budget: Budget, bits: float, tokens_per_parameter: float) -> tuple[str, str]:
    tight_bytes, tight_time = bits < _ENOUGH_BITS, tokens_per_parameter < 2 * TOKENS_PER_PARAMETER
    if budget.steps is not None:
        return "steps", "The number of steps is fixed; the time is what they take."
    if tight_bytes and tight_time:
        return "both", "Bytes and time are both used to the full: this model suits its budget."
    if tight_bytes:
        return "bytes", "More time would help little; a larger cap, with a larger model, would."
    if tight_time:
        return "time", "The file has room for more parameters, but not enough text could be shown to them."
    return "neither", "There is room in both: a larger model (see --bytes and --time) would score better."


def _target_parameters(recipe: Recipe) -> float:
    by_bytes = 8 * recipe.budget.bytes / BITS_PER_PARAMETER
    if recipe.budget.steps is not None:
        return by_bytes
    device = machine.select(recipe.device)
    rate = _GPU_RATE if device.type == "cuda" else _CPU_RATE[machine.fast_bfloat16()] * machine.available_threads()
    return min(by_bytes, math.sqrt(recipe.budget.seconds * rate / (6 * TOKENS_PER_PARAMETER)))


def _width_for(parameters: float) -> float:
    """Width of a plain stack of `12 D^2 L` parameters with `D = 32 L`."""
    return (parameters * WIDTH_PER_LAYER / 12) ** (1 / 3)


def _candidates(recipe: Recipe, free: set[str], vocabulary: int, target: float) -> list[tuple[int, int, int]]:
    """(parameters, width, layers) of every model near the target."""
    unit = _width_unit(recipe)
    ideal = _width_for(target)
    widths = [recipe.model.width]
    if "model.width" in free:
        low, high = max(1, int(ideal / 2.2 / unit)), max(1, math.ceil(2.2 * ideal / unit))
        widths = [unit * factor for factor in range(low, high + 1, max(1, (high - low) // 16))]
    found = []
    for width in widths:
        count = partial(_count, recipe, vocabulary, width)
        try:
            layers = [recipe.model.depth.layers]
            if "model.depth.layers" in free:
                one, two = count(1), count(2)
                wished = 1 + (target - one) / max(1, two - one)
                layers = sorted({max(1, math.floor(wished)), max(1, math.ceil(wished))})
            found += [(count(layer), width, layer) for layer in layers if layer <= 256]
        except ConfigError:
            continue
    return found


def _misfit(parameters: int, width: int, layers: int, target: float) -> float:
    """Distance from the wished size, counting too large four times, and from the wished shape."""
    size = math.log(parameters / target)
    shape = math.log(width / layers / WIDTH_PER_LAYER)
    return (8 * size if size > 0 else -2 * size) + 0.4 * abs(shape)


def _width_unit(recipe: Recipe) -> int:
    """Widths must be multiples of this, so that every mixer's heads divide them into multiples of eight."""
    return 8 * math.lcm(
        *(heads for mixer in recipe.model.mixer if isinstance(heads := getattr(mixer, "heads", 1), int))
    )


def _count(recipe: Recipe, vocabulary: int, width: int, layers: int) -> int:
    sized = _with(recipe, {"model.width": width, "model.depth.layers": layers})
    return sum(parameter.numel() for parameter in sized.model.skeleton(vocabulary).parameters())


def _with(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    data = recipe.plain()
    for path, value in changes.items():
        *sections, last = path.split(".")
        node = data
        for section in sections:
            node = node[section]
        node[last] = value
    return Recipe.read(data)


def _names(assigned: str, path: str) -> bool:
    """Whether setting `assigned` settles `path`: the same field, or a section that holds it given as a whole."""
    return path == assigned or path.startswith(f"{assigned}.")


def _rows(model: nn.Module) -> int:
    return sum(parameter.shape[0] for parameter in model.parameters() if parameter.dim() > 1)
