"""What races of an artifact with plain GPTs share: options, settings, and rates of those whose nats are right."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pairs import Measured

from fairway.core.device import keep_freed_memory, route_float32_products
from report import save

PEERS = ("gpt fp32", "gpt bf16", "gpt fp32 compiled", "gpt bf16 compiled")
ERROR = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest relative distance of all nats from those in float64."""


def options(description: str | None, size: str, default: int) -> argparse.ArgumentParser:
    """The options of both races; `size` names how much is read."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", default="runs/default/model.fwy")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(f"--{size}", type=int, default=default)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--contend")
    return parser


def set_up(name: str, ours: Sequence[str], threads: int) -> None:
    """Gives a contender's process what its name says."""
    torch.set_num_threads(threads)
    if name in ours or "settings" in name:
        keep_freed_memory()
        route_float32_products(forward_only=True)


def commands(script: str, chosen: argparse.Namespace, ours: Sequence[str], size: str) -> dict[str, list[str]] | None:
    """A command for each contender; None, and a sentence, where there is no artifact."""
    if not Path(chosen.artifact).exists():
        print(f"There is no artifact {chosen.artifact}; make run makes one.")
        return None
    base = [script, "--artifact", chosen.artifact, "--threads", str(chosen.threads)]
    base += [f"--{size}", str(getattr(chosen, size)), "--contend"]
    names = [*ours, *(f"{peer}{settings}" for peer in chosen.peers for settings in ("", " with settings"))]
    return {name: [*base, name] for name in names}


def show(race: str, measured: Mapping[str, Measured], threads: int, ours: Sequence[str]) -> None:
    """Keeps the race, and shows tokens a second of the contenders whose nats are those of float64."""
    wrong = {name for name, found in measured.items() if not found.facts["error"] <= ERROR[_precision(name)]}
    for name in sorted(wrong):
        print(f"{name} is not shown: its nats were off by {measured[name].facts['error']:.1e}.")
    seconds = {name: found.cpu if threads == 1 else found.wall for name, found in measured.items()}
    rates = {name: measured[name].facts["tokens"] / seconds[name] for name in measured if name not in wrong}
    save(f"{race}_{threads}t", measured, rates, "tokens/s", ours)


def _precision(name: str) -> str:
    return "bf16" if "bf16" in name else "fp32"
