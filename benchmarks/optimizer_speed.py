"""Optimizer steps a second on the CPU: Muon beside torch.optim.Muon, AdamW beside torch's fused one, and others.

`python benchmarks/optimizer_speed.py [--threads 1] [--rounds 7] [--shape small|large|all]`. `small`: 36 matrices of 6
layers of width 192, 2.65 million weights; `large`: 10.6 million. Torch's run as installed, with Fairway's allocator
setting, and with float32 products by oneDNN. A ratio is printed only if, from the same weights and gradients, both
updates are within a stated error of the same one computed in float64.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import pairs

from fairway.core.device import keep_freed_memory
from fairway.model.parts import Part, Role
from fairway.optim.parts import OptimizerConfig
from fairway.train.settings import TrainConfig
from report import save

SHAPES = {"small": (6, 192), "large": (6, 384)}
STEPS = 4
OURS = ("fairway-muon", "fairway-adamw")
RECORD = ("fairway-soap", "fairway-lion")
PEERS = {"muon": "torch-muon", "adamw": "torch-adamw-fused"}
ERRORS = {"muon": 0.03, "adamw": 1e-5}
"""Largest relative distance of an update from the exact one that passes as the same. Muon iterates in bfloat16, and its
iterations leave singular values anywhere in [0.68, 1.14] by themselves."""
LR, MOMENTUM = 0.02, 0.95

Prepared = tuple[Callable[[], None], dict[str, Any]]


class Matrices(Part):
    """The hidden matrices of a plain transformer: four of attention, two of the feed-forward, in each layer."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
        source = torch.Generator().manual_seed(0)
        for layer in range(layers):
            for place, shape in enumerate(shapes):
                matrix = nn.Parameter(torch.randn(shape, generator=source) / width**0.5)
                matrix.grad = torch.randn(shape, generator=source)
                self.register_parameter(f"matrix_{layer}_{place}", matrix)

    def roles(self) -> dict[str, Role]:
        return dict.fromkeys(self._parameters, Role.MATRIX)


def stepper(name: str, model: Matrices) -> Callable[[], object]:
    """One step of an optimizer."""
    if name == "torch-muon":
        rates: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM, "weight_decay": 0.0, "adjust_lr_fn": "original"}
        return torch.optim.Muon(model.parameters(), **rates).step
    if name == "torch-adamw-fused":
        return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True).step
    optimizer = our_config(name.partition("-")[2]).build(model)
    return lambda: optimizer.step(1.0, 1.0)


def our_config(kind: str) -> OptimizerConfig:
    """Settings that make the same steps as the peer's."""
    settings = {
        "muon": {"lr": LR, "momentum": MOMENTUM},
        "adamw": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1},
    }
    return TrainConfig.read({"optimizer": {"kind": kind, **settings.get(kind, {})}}).optimizer


def prepare(name: str, shape: str) -> Prepared:
    step = stepper(name, model := Matrices(*SHAPES[shape]))

    def run() -> None:
        for _ in range(STEPS):
            step()

    return run, {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def change(name: str, shape: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What three steps do to the weights."""
    model = Matrices(*SHAPES[shape]).to(dtype)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step = stepper(name, model)
    for _ in range(3):
        step()
    return [(parameter.detach() - old).double() for parameter, old in zip(model.parameters(), before, strict=True)]


def distances(kind: str, shape: str) -> tuple[float, float]:
    """Largest relative distance of a matrix's update from the one in float64, of ours and of the peer's."""
    exact = change(f"fairway-{kind}", shape, torch.float64)
    found = []
    for name in (f"fairway-{kind}", PEERS[kind]):
        both = zip(change(name, shape), exact, strict=True)
        found.append(max(float((seen - wanted).norm() / wanted.norm()) for seen, wanted in both))
    return found[0], found[1]


def contend(name: str, shape: str, threads: int, settings: str) -> None:
    """One contender's process."""
    torch.set_num_threads(threads)
    if "allocator" in settings:
        keep_freed_memory()
    if "onednn" in settings:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # pyrefly: ignore
    pairs.serve(lambda: prepare(name, shape))


def race(shape: str, threads: int, rounds: int) -> None:
    """Measures one shape and prints a table for each peer, and one for the record."""
    base = [__file__, "--threads", str(threads), "--shape", shape, "--contend"]
    commands = {name: [*base, name, "--settings", "allocator"] for name in (*OURS, *RECORD)}
    for peer in PEERS.values():
        commands[f"{peer} as installed"] = [*base, peer]
        commands[f"{peer} with allocator"] = [*base, peer, "--settings", "allocator"]
        commands[f"{peer} with allocator, oneDNN"] = [*base, peer, "--settings", "allocator,onednn"]
    measured = pairs.measure(commands, rounds, threads)
    rates = {name: STEPS / (value.cpu if threads == 1 else value.wall) for name, value in measured.items()}
    for kind, peer in PEERS.items():
        ours, theirs = distances(kind, shape)
        print(f"{kind}: updates {ours:.1e} from those in float64, the peer's {theirs:.1e}")
        if max(ours, theirs) > ERRORS[kind]:
            raise SystemExit(f"no ratio is printed: more than {ERRORS[kind]:.0e} is not the same update")
        names = [name for name in rates if name == f"fairway-{kind}" or name.startswith(peer)]
        table = {name: measured[name] for name in names}
        save(f"optimizer_{kind}_{shape}_{threads}t", table, {name: rates[name] for name in names}, "steps/s", OURS)
    for name in RECORD:
        print(f"  for the record: {name} {rates[name]:,.1f} steps/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--contend")
    parser.add_argument("--settings", default="")
    chosen = parser.parse_args()
    if chosen.contend:
        contend(chosen.contend, chosen.shape, chosen.threads, chosen.settings)
        return
    for shape in SHAPES if chosen.shape == "all" else (chosen.shape,):
        race(shape, chosen.threads, chosen.rounds)


if __name__ == "__main__":
    main()
