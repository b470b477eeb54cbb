"""Decoding tokens per second, batch 1: the default artifact beside transformers' generate with a Llama of its shape.

`python benchmarks/decode_speed.py [--artifact FILE] [--threads 1] [--rounds 7]`. Both decode greedily from one token
with their caches.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import pairs

import fairway
from report import save

TOKENS = 200
PEERS = ("llama-fp32", "llama-bf16")


def prepare_ours(artifact: str) -> tuple[Callable[[], None], dict[str, Any]]:
    model = fairway.load(artifact)

    def run() -> None:
        for _ in model.generate("", tokens=TOKENS, temperature=0.0):
            pass

    config = model.network.config
    return run, {"width": config.width, "layers": config.depth.layers, "vocabulary": model.network.vocabulary}


def prepare_peer(name: str, artifact: str) -> tuple[Callable[[], None], dict[str, Any]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    network = fairway.load(artifact).network
    width, heads = network.config.width, network.config.mixer[0].plain()["heads"]
    config = LlamaConfig(
        vocab_size=network.vocabulary, hidden_size=width, intermediate_size=round(width * 8 / 3),
        num_hidden_layers=network.config.depth.layers, num_attention_heads=heads, tie_word_embeddings=True,
        max_position_embeddings=network.config.context, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    if name.endswith("bf16"):
        model = model.bfloat16()
    prompt = torch.zeros(1, 1, dtype=torch.int64)

    @torch.inference_mode()
    def run() -> None:
        model.generate(prompt, attention_mask=prompt + 1, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)

    return run, {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", default="runs/default/model.fwy")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--contend")
    chosen = parser.parse_args()
    if not Path(chosen.artifact).exists():
        print(f"There is no artifact {chosen.artifact}; make run makes one.")
        return
    if chosen.contend:
        torch.set_num_threads(chosen.threads)
        ours = chosen.contend == "fairway"
        pairs.serve(lambda: prepare_ours(chosen.artifact) if ours else prepare_peer(chosen.contend, chosen.artifact))
        return
    base = [__file__, "--threads", str(chosen.threads), "--artifact", chosen.artifact, "--contend"]
    measured = pairs.measure({name: [*base, name] for name in ("fairway", *PEERS)}, chosen.rounds, chosen.threads)
    rates = {name: TOKENS / value.cpu for name, value in measured.items()}
    save(f"decode_speed_{chosen.threads}t", measured, rates, "tokens per CPU second", ("fairway",))


if __name__ == "__main__":
    main()
