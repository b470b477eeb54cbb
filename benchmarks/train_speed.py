"""Training tokens per second on the CPU: Fairway beside a plain PyTorch GPT and transformers' Llama of the same shape.

`python benchmarks/train_speed.py [--threads 1] [--rounds 7]`. Shape: 6 layers, width 192, 6 heads, context 256,
vocabulary 1,024, batch 16. Every contender trains on random tokens with AdamW; each runs as installed and with
Fairway's allocator setting.
"""

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

import pairs

from report import save

LAYERS, WIDTH, HEADS, CONTEXT, VOCABULARY, BATCH = 6, 192, 6, 256, 1024, 16
STEPS = 2
PEERS = ("gpt-fp32", "gpt-bf16", "gpt-bf16-compiled", "llama-fp32", "llama-bf16")
OURS = ("fairway-adamw", "fairway-muon")

Prepared = tuple[Callable[[], None], dict[str, Any]]


def tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(0))


def prepare_peer(name: str) -> Prepared:
    """A peer's training steps, in autocast where its name says bf16."""
    if name.startswith("gpt"):
        from peers.plain_gpt import PlainGpt

        model = PlainGpt(VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT)
        loss = model.loss
    else:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=512, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, max_position_embeddings=CONTEXT, tie_word_embeddings=True, use_cache=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config)

        def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return functional.cross_entropy(model(inputs).logits.float().flatten(0, 1), targets.flatten())

    if name.endswith("compiled"):
        loss = torch.compile(loss)
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

    return run, {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def prepare_ours(name: str) -> Prepared:
    """Fairway's own loop over the same tokens."""
    from fairway.core.budget import Budget
    from fairway.core.config import override
    from fairway.data.batches import Batch
    from fairway.model.lm import ModelConfig
    from fairway.train.loop import Loop, TrainConfig
    from fairway.train.meter import Meter

    model = ModelConfig.read(
        {"width": WIDTH, "context": CONTEXT, "depth": LAYERS, "mixer": {"kind": "attention", "heads": HEADS}}
    ).build(VOCABULARY, seed=0)
    config = TrainConfig.read(override({"batch": BATCH}, [f"optimizer.kind={name.partition('-')[2]}"]))
    batch = Batch(tokens(), torch.zeros(BATCH, CONTEXT + 1, dtype=torch.bool))
    batches = types.SimpleNamespace(at=lambda step, size, context: batch)  # noqa: ARG005
    meter = Meter(1.0, model.flops(CONTEXT))
    loop = Loop(model, batches, config, Budget(steps=10**9), 0, Path(), {}, meter)

    def run() -> None:
        for _ in range(STEPS):
            loop._step()

    return run, {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": model.flops(CONTEXT),
    }


def contend(name: str, allocator: bool, threads: int) -> None:
    """One contender's process."""
    from fairway.core.device import keep_freed_memory

    torch.set_num_threads(threads)
    if allocator:
        keep_freed_memory()
    pairs.serve(lambda: prepare_ours(name) if name in OURS else prepare_peer(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--contend")
    parser.add_argument("--allocator", action="store_true")
    chosen = parser.parse_args()
    if chosen.contend:
        contend(chosen.contend, chosen.allocator, chosen.threads)
        return
    base = [__file__, "--threads", str(chosen.threads), "--contend"]
    commands = {name: [*base, name, "--allocator"] for name in OURS}
    for name in PEERS:
        commands[f"{name} as installed"] = [*base, name]
        commands[f"{name} with allocator"] = [*base, name, "--allocator"]
    measured = pairs.measure(commands, chosen.rounds, chosen.threads)
    work = STEPS * BATCH * CONTEXT
    save(
        f"train_speed_{chosen.threads}t",
        measured,
        {
            name: work / value.cpu * chosen.threads if chosen.threads == 1 else work / value.wall
            for name, value in measured.items()
        },
        "tokens/s",
        OURS,
    )


if __name__ == "__main__":
    main()
