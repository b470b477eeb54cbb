"""Training tokens per second on the CPU: Fairway beside a plain PyTorch GPT and transformers' Llama of the same shape.

`python benchmarks/train_speed.py [--threads 1] [--rounds 7] [--shape fixed|default]`. The fixed shape has 6 layers,
width 192, 6 heads, context 256, vocabulary 1,024, batch 16; the default recipe's has 2 layers. All train on the same
random tokens. A peer runs as installed, with Fairway's allocator setting, and in float32 also with its products by
oneDNN where that keeps float32's precision. MFU is the share of the bfloat16 product rate measured in the same run.
Fairway's rate counts only if its native path gives the losses of its PyTorch path.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import pairs

from report import save

WIDTH, HEADS, CONTEXT, VOCABULARY, BATCH = 192, 6, 256, 1024, 16
LAYERS = {"fixed": 6, "default": 2}
STEPS = 2
AGREE_STEPS = 20
AGREE_ERROR = 0.01
"""Largest relative distance of two losses of the same step: bfloat16 rounds at other places in the two paths."""
SIZE = 1024
PEERS = ("gpt-fp32", "gpt-bf16", "gpt-bf16-compiled", "llama-fp32", "llama-bf16")
OURS = ("fairway-muon", "fairway-adamw")
DENSE = "fairway-adamw without native kernels"
CEILINGS = ("products-fp32", "products-bf16")

Prepared = tuple[Callable[[], None], dict[str, Any]]


def tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(0))


def flops(weights: int, layers: int) -> float:
    """Of a training step and token, by the usual count: 6 for each weight of a product, and causal attention."""
    return 6.0 * weights + 6.0 * layers * WIDTH * CONTEXT


def prepare_peer(name: str, layers: int) -> Prepared:
    """A peer's training steps, in autocast where its name says bf16."""
    if name.startswith("gpt"):
        from peers.plain_gpt import PlainGpt as Peer
    else:
        from peers.llama import Llama as Peer

    torch.manual_seed(0)
    model = Peer(VOCABULARY, WIDTH, layers, HEADS, CONTEXT)
    loss = torch.compile(model.loss) if name.endswith("compiled") else model.loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batch = tokens()

    def run() -> None:
        for _ in range(STEPS):
            with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in name):
                value = loss(batch[:, :-1], batch[:, 1:])
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    matrices = [parameter.numel() for key, parameter in model.named_parameters() if _multiplies(key, parameter)]
    return run, {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": flops(sum(matrices), layers),
    }


def _multiplies(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 2 and "positions" not in name


def our_loop(name: str, layers: int) -> Any:
    """Fairway's own loop over the tokens."""
    from fairway.core.budget import Budget
    from fairway.core.config import override
    from fairway.data.batches import Batch, Batches
    from fairway.model.lm import ModelConfig
    from fairway.train.loop import Loop, TrainConfig
    from fairway.train.meter import Meter

    class Same(Batches):
        """The same rows at every step."""

        def __init__(self) -> None:
            self.batch = Batch(tokens(), torch.zeros(BATCH, CONTEXT + 1, dtype=torch.bool))

        def rows(self, first: int, count: int, context: int) -> Batch:  # noqa: ARG002
            return self.batch

    plan = {"width": WIDTH, "context": CONTEXT, "depth": layers, "mixer": {"kind": "attention", "heads": HEADS}}
    model = ModelConfig.read(plan).build(VOCABULARY, seed=0)
    optimizer = "muon" if "muon" in name else "adamw"
    config = TrainConfig.read(override({"batch": BATCH}, [f"optimizer.kind={optimizer}", "average.start=0"]))
    meter = Meter(1.0, model.flops(CONTEXT))
    return Loop(model, Same(), config, Budget(steps=10**6), 0, Path(), {}, meter)


def prepare_ours(name: str, layers: int) -> Prepared:
    loop = our_loop(name, layers)

    def run() -> None:
        for _ in range(STEPS):
            loop.advance(loop.agree())

    count = sum(parameter.numel() for parameter in loop.model.parameters())
    return run, {"parameters": count, "flops": 3 * loop.meter.flops_per_token}


def prepare_ceiling(name: str) -> Prepared:
    """Square products: what the machine can do."""
    from fairway.core.probe import gemm_ceiling

    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    x = torch.ones(SIZE, SIZE, dtype=dtype)

    def run() -> None:
        for _ in range(20):
            torch.mm(x, x)

    gemm_ceiling(dtype, seconds=0.1)
    return run, {"flops": 20 * 2.0 * SIZE**3}


def use_onednn() -> None:
    """Sends float32 products to oneDNN; refuses where it would round them to bfloat16."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # pyrefly: ignore
    left, right = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(1)).unbind()
    exact = left.double() @ right.double()
    error = float(((left @ right).double() - exact).norm() / exact.norm())
    if error > 1e-5:
        raise SystemExit(f"oneDNN rounds float32 products on this machine (error {error:.1e})")


def contend(name: str, layers: int, threads: int, settings: str) -> None:
    """One contender's process."""
    if "without native" in name:
        os.environ["FAIRWAY_NATIVE"] = "0"
    from fairway.core.device import keep_freed_memory

    torch.set_num_threads(threads)
    if "allocator" in settings:
        keep_freed_memory()
    if "onednn" in settings:
        use_onednn()
    if name in CEILINGS:
        pairs.serve(lambda: prepare_ceiling(name))
    else:
        pairs.serve(lambda: prepare_peer(name, layers) if name in PEERS else prepare_ours(name, layers))


def print_losses(name: str, layers: int) -> None:
    """The losses of the first steps, as JSON."""
    if "without native" in name:
        os.environ["FAIRWAY_NATIVE"] = "0"
    loop = our_loop(name, layers)
    print(json.dumps([loop.advance(loop.agree())["train/loss"] for _ in range(AGREE_STEPS)]))


def agreement(layers: int) -> float:
    """Largest relative distance between the losses of our native path and of our PyTorch path."""
    curves = []
    for name in ("fairway-adamw", DENSE):
        command = [sys.executable, __file__, "--losses", name, "--layers", str(layers)]
        curves.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return max(abs(a - b) / b for a, b in zip(*curves, strict=True))


def first_step(root: Path) -> float:
    """Seconds from the command `fairway train` on prepared data to the end of its first step."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        recipe = [str(root / "recipes" / "default.yaml"), "--folder", str(folder)]
        subprocess.run([sys.executable, "-m", "fairway", "prepare", *recipe], check=True, capture_output=True)
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "fairway", "train", str(folder), "--json"], stdout=subprocess.DEVNULL
        )
        journal = folder / "metrics.jsonl"
        while process.poll() is None and not (journal.exists() and journal.stat().st_size):
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        assert process.poll() is None, "fairway train ended before its first step"
        process.terminate()
        process.wait()
    return seconds


def race(shape: str, threads: int, rounds: int, peers: Sequence[str]) -> None:
    """Measures one shape and prints its table."""
    layers = LAYERS[shape]
    base = [__file__, "--threads", str(threads), "--layers", str(layers), "--contend"]
    commands = {name: [*base, name, "--settings", "allocator"] for name in (*OURS, DENSE)}
    commands |= {name: [*base, name, "--settings", "allocator,onednn"] for name in CEILINGS}
    for name in peers:
        commands[f"{name} as installed"] = [*base, name]
        commands[f"{name} with allocator"] = [*base, name, "--settings", "allocator"]
        if "fp32" in name:
            commands[f"{name} with allocator, oneDNN"] = [*base, name, "--settings", "allocator,onednn"]
    measured = pairs.measure(commands, rounds, threads)
    seconds = {name: value.cpu if threads == 1 else value.wall for name, value in measured.items()}
    ceiling = measured["products-bf16"].facts["flops"] / seconds["products-bf16"]
    rates = {name: STEPS * BATCH * CONTEXT / seconds[name] for name in measured if name not in CEILINGS}
    distance = agreement(layers)
    print(f"losses of the native and the PyTorch path over {AGREE_STEPS} steps: {distance:.1e} apart at most")
    if distance > AGREE_ERROR:
        raise SystemExit(f"no ratio is printed: more than {AGREE_ERROR} apart")
    runners = {name: measured[name] for name in rates}
    save(f"train_speed_{shape}_{threads}t", runners, rates, "tokens/s", (*OURS, DENSE), bf16_flops=ceiling)
    print(f"  bf16 products: {ceiling / 1e9:,.0f} GFLOP/s; MFU of it:")
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
        print(f"  {name:<36}{100 * rate * measured[name].facts['flops'] / ceiling:11.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", choices=[*LAYERS, "all"], default="all")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--contend")
    parser.add_argument("--losses")
    parser.add_argument("--settings", default="")
    chosen = parser.parse_args()
    if chosen.contend:
        contend(chosen.contend, chosen.layers, chosen.threads, chosen.settings)
    elif chosen.losses:
        print_losses(chosen.losses, chosen.layers)
    else:
        for shape in LAYERS if chosen.shape == "all" else (chosen.shape,):
            race(shape, chosen.threads, chosen.rounds, chosen.peers)
        print(f"fairway train, from the command to the first step: {first_step(Path(__file__).parents[1]):.1f} s")


if __name__ == "__main__":
    main()
