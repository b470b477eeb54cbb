"""From a trained model to a file within [0.995, 1] of a cap, at the finest step that fits.

The size falls by about one bit per quantised weight for each unit of strength, so a few real attempts
(quantise, code, measure) find the step; every size that counts is that of a real file. A model that fits at
the finest step worth storing is left smaller than the cap.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fairway.artifact.format import Contents, encode, estimated_bytes, unpack, write_bytes
from fairway.artifact.packing.raw import pack as pack_raw
from fairway.artifact.parts import Packed
from fairway.artifact.report import Report, report
from fairway.compress.calibrate import linear_weights, sequentially
from fairway.compress.felt import felt_statistics
from fairway.compress.parts import Piece, Quantizer, Statistics
from fairway.compress.plan import CompressConfig
from fairway.compress.predict import finer, is_quantized, predict_strength
from fairway.compress.sensitivity import shifts
from fairway.core.errors import BudgetError
from fairway.core.log import Event, Listener, say_once, silent
from fairway.model.lm import LanguageModel
from fairway.model.parts import Role, parameter_roles

_LOW_ENOUGH = 0.9985
_AIM = 0.9993
_ACCEPTED = 0.9955
_FILLED = 0.995
_PATIENCE = 7
_MOST_ATTEMPTS = 24


@dataclass(frozen=True)
class Fit:
    """What compression did."""

    bytes: int
    """Size of the file."""
    predicted_bytes: int
    """Size expected from the weights just before coding."""
    cap: int
    """Largest size allowed; the margin is not part of it."""
    strength: float
    """Logarithm to base 2 of the matrices' step relative to their deviation."""
    attempts: int
    report: Report
    """Where the bytes went."""
    note: str = ""
    """Why the cap is not filled, and what would fill it; empty where it is."""


@dataclass(frozen=True)
class _Attempt:
    strength: float
    predicted: int
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


def compress_model(
    model: LanguageModel,
    tokenizer_kind: str,
    tokenizer_bytes: bytes,
    config: CompressConfig,
    cap: int,
    path: Path,
    notes: dict[str, Any],
    calibration: Sequence[Tensor] | None = None,
    listener: Listener = silent,
) -> Fit:
    """Writes the model as an artifact of at most `cap` bytes; the model itself stays as it is.

    `calibration`: batches of token ids (B, T), for techniques that look at activations. Raises
    `BudgetError` where even the coarsest step does not fit.
    """
    texts = list(calibration or ())
    pruned = config.prune.build().prune(copy.deepcopy(model).cpu().float(), texts, listener)
    source, kept = pruned.model.requires_grad_(False), pruned.kept
    quantizer = config.quantize.build()
    seen = felt_statistics(source, texts) if quantizer.felt or config.sensitivity == "kronecker" else {}
    moved = {} if config.sensitivity == "none" else shifts(source, texts, config.sensitivity, kept, seen)

    def attempt(strength: float) -> _Attempt:
        tensors = quantized(source, quantizer, strength, config, kept, texts, listener, moved, seen)
        contents = Contents(
            source.config.plain(),
            source.vocabulary,
            tokenizer_kind,
            tokenizer_bytes,
            tensors,
            notes,
            config.coder.kind,
        )
        return _Attempt(strength, estimated_bytes(contents), encode(contents))

    slope = _quantized_numbers(source, kept) / 8
    start = predict_strength(source.config, source.vocabulary, len(tokenizer_bytes), cap, config)
    finest = max(quantizer.finest, config.finest)
    found, count = search(attempt, cap - config.margin, start, finest, quantizer.coarsest, slope, listener)
    write_bytes(path, found.data)
    note = _why_smaller(found, cap - config.margin, finest, config)
    if note:
        listener(Event("quantise", 1.0, message=note))
    return Fit(found.size, found.predicted, cap, found.strength, count, report(found.data), note)


def quantized(
    source: LanguageModel,
    quantizer: Quantizer,
    strength: float,
    config: CompressConfig,
    kept: dict[str, Tensor],
    calibration: Sequence[Tensor],
    listener: Listener = silent,
    moved: Mapping[str, float] | None = None,
    seen: Mapping[str, Statistics] | None = None,
) -> dict[str, Packed]:
    """Every parameter of a model as integers, each exactly once, in the model's order.

    `moved`: what to add to the strength of each parameter in place of what its role adds. `seen`: how much the loss
    feels each output, and statistics of what the forward of hidden vectors does not reach (tables, heads).
    """
    roles = parameter_roles(source)
    packed: dict[str, Packed] = {}
    seen = seen or {}

    def treat(name: str, weight: Tensor, statistics: Statistics | None) -> None:
        role, shape = roles[name], tuple(weight.shape)
        assert name not in packed, f"{name} is covered twice"
        if is_quantized(role, shape):
            rows_RC = weight.detach().reshape(-1, shape[-1])
            mask = kept[name].reshape(rows_RC.shape) if name in kept else None
            if statistics is not None and name in seen:
                statistics = replace(statistics, felt_R=seen[name].felt_R)
            piece = Piece(name, role, shape, rows_RC, statistics, mask)
            own = moved[name] if moved else finer(role, config.embedding_finer)
            packed[name] = quantizer.quantize(piece, min(strength + own, max(strength, quantizer.coarsest)))
        else:
            packed[name] = pack_raw(weight, "float32" if role is Role.DECAY else "float16")

    if quantizer.calibrated:
        _calibrated(source, calibration, treat, packed, listener, seen)
    for name, parameter in source.named_parameters():
        if name not in packed:
            treat(name, parameter, seen.get(name))
    assert set(packed) == set(roles), "every parameter is covered by exactly one packing"
    return {name: packed[name] for name in roles}


def search(
    attempt: Callable[[float], _Attempt],
    cap: int,
    start: float,
    finest: float,
    coarsest: float,
    slope: float,
    listener: Listener = silent,
) -> tuple[_Attempt, int]:
    """The attempt with the finest step whose file fits, and the number of attempts made."""
    made: list[_Attempt] = []
    fits: _Attempt | None = None
    strength = min(max(start, finest), coarsest)
    while len(made) < _MOST_ATTEMPTS:
        made.append(attempt(strength))
        current = made[-1]
        listener(Event("quantise", None, {"strength": strength, "bytes": current.size, "predicted": current.predicted}))
        fits = max((a for a in made if a.size <= cap), key=lambda a: (a.size, -a.strength), default=None)
        over = _nearest_over([a for a in made if a.size > cap], fits)
        if fits is None and strength >= coarsest:
            raise _too_small(current.size, cap)
        finest_fits = strength <= finest and current.size <= cap
        if fits is not None and (finest_fits or _good_enough(fits, over, cap, len(made))):
            return fits, len(made)
        strength = _next(made, fits, over, cap, slope, finest, coarsest)
    if fits is None:
        fits = attempt(coarsest)
        if fits.size > cap:
            raise _too_small(fits.size, cap)
    return fits, len(made)


def _next(
    made: list[_Attempt],
    fits: _Attempt | None,
    over: _Attempt | None,
    cap: int,
    slope: float,
    finest: float,
    coarsest: float,
) -> float:
    """Where a line through the two nearest attempts, or a line through the last with the expected slope or the last two
    attempts' own where that is less, meets the aim.

    A flat stretch, as of a quantiser that has no finer or coarser choice, is left by going to the end of
    the range.
    """
    goal, current = _AIM * cap, made[-1]
    if fits is not None and over is not None:
        share = (over.size - goal) / (over.size - fits.size) if len(made) % 3 else 0.5
        return over.strength + min(max(share, 0.05), 0.95) * (fits.strength - over.strength)
    end = finest if over is None else coarsest
    if len(made) > 1:
        moved = abs(current.strength - made[-2].strength)
        changed = abs(current.size - made[-2].size)
        if changed < 0.05 * slope * moved:
            return end
        slope = min(slope, changed / max(moved, 1e-9))
    move = 1.2 * (current.size - goal) / slope
    move = min(move, -1e-3) if over is None else max(move, 1e-3)
    return min(max(current.strength + move, finest), coarsest)


def _nearest_over(over: list[_Attempt], fits: _Attempt | None) -> _Attempt | None:
    """The attempt over the cap nearest to the best that fits, on its finer side if there is one."""
    finer_side = [a for a in over if fits is not None and a.strength < fits.strength]
    return max(finer_side or over, key=lambda a: a.strength, default=None)


def _good_enough(fits: _Attempt, over: _Attempt | None, cap: int, count: int) -> bool:
    """Whether further attempts could add nothing that matters; the longer the search, the less is asked for."""
    if fits.size >= _LOW_ENOUGH * cap:
        return True
    close = over is not None and abs(fits.strength - over.strength) < 1e-4
    return fits.size >= _ACCEPTED * cap and (close or count >= _PATIENCE)


def _calibrated(
    source: LanguageModel,
    calibration: Sequence[Tensor],
    treat: Callable[[str, Tensor, Statistics | None], None],
    packed: dict[str, Packed],
    listener: Listener,
    seen: Mapping[str, Statistics],
) -> None:
    """Treats the linear maps one after another, each behind the quantised ones before it."""
    model = copy.deepcopy(source)
    weights = {name: module.weight for module, name in linear_weights(model).items()}

    def one(name: str, statistics: Statistics) -> Tensor:
        treat(name, weights[name], statistics)
        return unpack(name, packed[name])

    sequentially(model, calibration, one, listener)
    missed = sorted(set(weights) - set(packed) - set(seen))
    if missed:
        say_once(f"No calibration text reached {', '.join(missed)}; they are rounded to nearest.")


def _quantized_numbers(model: LanguageModel, kept: dict[str, Tensor]) -> int:
    """Weights that the quantiser will see and a pruner has not removed."""
    roles = parameter_roles(model)
    return sum(
        int(kept[name].sum()) if name in kept else parameter.numel()
        for name, parameter in model.named_parameters()
        if is_quantized(roles[name], tuple(parameter.shape))
    )


def _why_smaller(found: _Attempt, cap: int, finest: float, config: CompressConfig) -> str:
    """One sentence for a file that leaves more than half a per cent of the cap empty."""
    if found.size >= _FILLED * cap:
        return ""
    if found.strength > finest:
        return (
            f"No step of compress.quantize.kind={config.quantize.kind} comes nearer to {cap:,} bytes than "
            f"{found.size:,}: its sizes lie too far apart there; rtn or trellis would fill the cap."
        )
    pruned, less = "", ""
    if config.prune.kind != "none":
        pruned = f" after compress.prune.kind={config.prune.kind}"
        less = "a lower compress.prune.sparsity, or " if hasattr(config.prune, "sparsity") else ""
    return (
        f"At its finest, compress.quantize.kind={config.quantize.kind} takes {found.size:,} of {cap:,} bytes{pruned}: "
        f"{config.quantize.build().bound}; {less}a wider or deeper model would use the rest."
    )


def _too_small(size: int, cap: int) -> BudgetError:
    return BudgetError(
        f"Even with the coarsest step the artifact takes {size:,} bytes, and {cap:,} are allowed. "
        "Allow more bytes, or make the model smaller (model.width, model.depth, data.tokenizer.vocabulary)."
    )
