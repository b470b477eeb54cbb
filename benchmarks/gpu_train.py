"""Training on a GPU: seconds a step, tokens per second, share of the arithmetic (MFU) and peak memory.

`python benchmarks/gpu_train.py [--rounds 5]`, about 10 minutes. The public baseline's shape (9 layers, width 512, 8
heads, 4 of keys, vocabulary 1,024, context 1,024, 524,288 tokens a step by accumulation) by Fairway and by plain
compiled PyTorch; and recipes for 16 MB of 27 and 35 million parameters at context 2,048. Each trains on random tokens
from a small set, so that its loss must fall; one whose loss does not gets no rate. Without a GPU it says so. `--tiny`
tests the script on a CPU, without what compiles.
"""

import argparse
import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import pairs

from report import save


@dataclass(frozen=True)
class Shape:
    """A model and the tokens of a step."""

    layers: int
    width: int
    heads: int
    groups: int
    vocabulary: int
    ratio: int
    context: int
    batch: int
    micro: int


SHAPES = {
    "baseline": Shape(9, 512, 8, 4, 1024, 2, 1024, 512, 64),
    "27M": Shape(11, 512, 8, 4, 1024, 3, 2048, 384, 32),
    "35M": Shape(11, 512, 8, 4, 4096, 4, 2048, 384, 32),
}
TINY = Shape(2, 32, 4, 2, 64, 2, 32, 8, 4)
OURS = ("fairway-muon", "fairway-adamw", "fairway-muon-compiled")
PEERS = ("plain", "plain-compiled")
STEPS = 2

Prepared = tuple[Callable[[], None], dict[str, Any]]


def tokens(shape: Shape) -> torch.Tensor:
    """The batch, from a sixteenth of the vocabulary."""
    source = torch.Generator().manual_seed(0)
    return torch.randint(0, max(2, shape.vocabulary // 16), (shape.batch, shape.context + 1), generator=source)


def config(shape: Shape) -> Any:
    """Fairway's model of a shape."""
    from fairway.model.lm import ModelConfig

    return ModelConfig.read(
        {
            "width": shape.width,
            "context": shape.context,
            "depth": shape.layers,
            "mixer": {"kind": "attention", "heads": shape.heads, "key_groups": shape.groups},
            "ffn": {"kind": "relu2", "ratio": shape.ratio},
        }
    )


def prepare_ours(name: str, shape: Shape, device: str) -> Prepared:
    """Steps of Fairway's own loop."""
    from fairway.core.budget import Budget
    from fairway.core.config import override
    from fairway.data.batches import Batch
    from fairway.train.loop import Loop, Moment, TrainConfig
    from fairway.train.meter import Meter

    model = config(shape).build(shape.vocabulary, seed=0, device=device)
    choices = [f"optimizer.kind={name.split('-')[1]}", f"compile={str(name.endswith('compiled')).lower()}"]
    train = TrainConfig.read(override({"batch": shape.batch, "micro_batch": shape.micro}, choices))
    batch = Batch(tokens(shape), torch.zeros(shape.batch, shape.context + 1, dtype=torch.bool))
    batches = types.SimpleNamespace(rows=lambda first, count, context: batch)  # noqa: ARG005
    loop = Loop(model, batches, train, Budget(steps=10**6), 0, Path(), {}, Meter(1.0, 1.0))

    def step() -> float:
        return loop.advance(Moment(0.5, 1e9, done=False, save=False, stop=False))["train/loss"]

    return _running(step, shape, device, model)


def prepare_peer(name: str, shape: Shape, device: str) -> Prepared:
    """Steps of plain PyTorch: bfloat16 autocast, fused AdamW."""
    from peers.plain_baseline import PlainBaseline

    model = PlainBaseline(
        shape.vocabulary, shape.width, shape.layers, shape.heads, shape.groups, shape.ratio
    ).to(device)  # fmt: skip
    loss = torch.compile(model.loss) if name.endswith("compiled") else model.loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    parts = shape.batch // shape.micro
    held = tokens(shape).to(device)

    def step() -> float:
        total = torch.zeros((), device=device)
        for part in held.split(shape.micro):
            with torch.autocast(device, torch.bfloat16):
                value = loss(part[:, :-1], part[:, 1:]) / parts
            value.backward()
            total += value.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    return _running(step, shape, device, model)


def _running(step: Callable[[], float], shape: Shape, device: str, model: torch.nn.Module) -> Prepared:
    facts: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "first_loss": step(),
    }

    def run() -> None:
        losses = [step() for _ in range(STEPS)]
        if device == "cuda":
            torch.cuda.synchronize()
            facts["peak_bytes"] = torch.cuda.max_memory_allocated()
        facts["learns"] = losses[-1] < facts["first_loss"] < math.log(shape.vocabulary) + 1

    return run, facts


def compared(name: str, shape: Shape, rounds: int, tiny: bool) -> None:
    """Measures every contender at one shape."""
    from fairway.core.probe import gemm_ceiling

    flags = ["--tiny"] if tiny else []
    contenders = [one for one in (*OURS, *PEERS) if not (tiny and one.endswith("compiled"))]
    commands = {one: [__file__, "--contend", one, name, *flags] for one in contenders}
    measured = pairs.measure(commands, rounds, 1)
    for one, value in measured.items():
        if not value.facts["learns"]:
            print(f"{name}: {one} does not learn and gets no rate")
    right = {one: value for one, value in measured.items() if value.facts["learns"]}
    work = STEPS * shape.batch * shape.context
    peak = gemm_ceiling(torch.bfloat16, "cpu" if tiny else "cuda", size=512 if tiny else 8192)
    per_token = 3 * config(shape).build(shape.vocabulary, seed=0).flops(shape.context)
    for one, value in right.items():
        mfu, memory = per_token * work / value.wall / peak, value.facts.get("peak_bytes", 0) / 2**30
        print(f"  {one:<24}{1000 * value.wall / STEPS:9.1f} ms a step  MFU {100 * mfu:5.1f} %  {memory:6.1f} GiB")
    if set(right) & set(PEERS):
        rates = {one: work / value.wall for one, value in right.items()}
        save(f"gpu_train_{'tiny' if tiny else name}", right, rates, "tokens/s", OURS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--contend", nargs=2)
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    if chosen.contend:
        name, size = chosen.contend
        shape, device = (TINY, "cpu") if chosen.tiny else (SHAPES[size], "cuda")
        pairs.serve(lambda: (prepare_ours if name in OURS else prepare_peer)(name, shape, device))
    elif chosen.tiny or torch.cuda.is_available():
        for size in ["baseline"] if chosen.tiny else chosen.shapes:
            compared(size, TINY if chosen.tiny else SHAPES[size], chosen.rounds, chosen.tiny)
    else:
        print("There is no CUDA device here; nothing was measured.")


if __name__ == "__main__":
    main()
