"""What `fairway eie` prints: the simulator run over an artifact's sparse tensors, or over the published layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairway.artifact import format as artifact
from fairway.artifact.parts import Packed
from fairway.compress.calibrate import last_inputs
from fairway.compress.eie import Machine, fixed, fraction_of, interleave, multiply, work
from fairway.compress.eie_layers import PAPER_HERTZ, PUBLISHED, random_activations, simulated
from fairway.core.errors import ConfigError
from fairway.serve.load import load

_DEPTHS = (1, 2, 4, 8, 16, 32)
_ELEMENTS = (1, 4, 16, 64, 256)


@dataclass(frozen=True, eq=False)
class Layer:
    """One sparse tensor under simulation."""

    name: str
    packed: Packed
    machine: Machine
    activations_C: np.ndarray
    facts: dict[str, Any]


def layers_of_artifact(path: Path, machine: Machine, density: float, text: str | None) -> list[Layer]:
    """Every sparse tensor of an artifact, simulated; raises `ConfigError` where there is none."""
    contents = artifact.read(path)
    tensors = {name: packed for name, packed in contents.tensors.items() if packed.kind == "sparse"}
    if not tensors:
        raise ConfigError(
            f"{path} holds no sparse tensors. compress.quantize.kind=kmeans compress.quantize.layout=sparse "
            f"compress.quantize.clusters={(1 << machine.code_bits) - 1} compress.prune.kind=magnitude would make them."
        )
    seen = {} if text is None else _activations_behind(path, text)
    layers = []
    for name, packed in tensors.items():
        if text is None:
            layers.append(_layer(name, packed, machine, random_activations(packed.shape[-1], density, 0, name)))
        elif name in seen:
            values = seen[name].astype(np.float64)
            layers.append(_layer(name, packed, machine, fixed(values, fraction_of(values))))
    if not layers:
        raise ConfigError("The text reaches no sparse tensor; without --text, random activations would work.")
    return layers


def sweep(layers: Sequence[Layer]) -> dict[str, dict[int, float]]:
    """Balance of all tensors together by depth of the queues, and by number of elements."""

    def balance(change: Callable[[Machine], Machine]) -> float:
        done = [work(interleave(layer.packed, change(layer.machine)), layer.activations_C) for layer in layers]
        offered = sum(each.cycles * each.elements for each in done)
        return sum(each.entries for each in done) / max(1, offered)

    return {
        "balance_by_fifo": {depth: balance(lambda m, d=depth: replace(m, fifo=d)) for depth in _DEPTHS},
        "balance_by_elements": {count: balance(lambda m, c=count: replace(m, elements=c)) for count in _ELEMENTS},
    }


def published_layers(machine: Machine) -> list[dict[str, Any]]:
    """The nine layers of the paper at its densities, and the paper's own times."""
    rows = []
    for layer in PUBLISHED:
        done = simulated(layer, machine)
        rows.append(
            {
                "layer": layer.name,
                "cycles": done.cycles,
                "microseconds": done.cycles / PAPER_HERTZ * 1e6,
                "paper_microseconds": layer.paper_actual_us,
                "balance": done.balance,
                "padding": done.padding,
                "work_saved": done.saved,
            }
        )
    return rows


def _layer(name: str, packed: Packed, machine: Machine, activations_C: np.ndarray) -> Layer:
    matrix = interleave(packed, machine)
    done = work(matrix, activations_C)
    widest = int(np.abs(multiply(matrix, activations_C)).max(initial=0))
    facts = {
        "tensor": name,
        "weights_kept": float((matrix.codes > 0).sum() / (matrix.shape[0] * matrix.shape[1])),
        "active": done.active / matrix.shape[1],
        "cycles": done.cycles,
        "balance": done.balance,
        "padding": done.padding,
        "work_saved": done.saved,
        "on_chip_bytes": -(-matrix.bits // 8),
        "widest_sum_bits": widest.bit_length() + 1,
    }
    return Layer(name, packed, machine, activations_C, facts)


def _activations_behind(path: Path, text: str) -> dict[str, np.ndarray]:
    model = load(path)
    tokens = model.tokenizer.encode(text.encode())
    if not len(tokens):
        raise ConfigError("--text is empty; some words would work.")
    tokens_BT = torch.as_tensor(np.asarray(tokens).astype(np.int64))[None, -model.context :]
    return {name: x_C.numpy() for name, x_C in last_inputs(model.network, tokens_BT).items()}
