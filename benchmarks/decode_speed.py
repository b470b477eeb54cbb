"""Decoding tokens per second, batch 1: Fairway beside transformers' generate and llama.cpp with a Llama of its shape.

`python benchmarks/decode_speed.py [--shape small mid artifact] [--threads 1 2] [--rounds 7] [--tokens 200]`. All decode
greedily from one token with their caches. `small` has 2.85 million parameters (6 layers, width 192, 6 heads, vocabulary
1,024), `mid` 17.3 million (8 layers, width 384, 8 heads, vocabulary 8,192), ours as integers of 8 and of 4 bits with a
step for each row; `artifact` is the file of `--artifact`. Before it is timed, each of ours decodes beside its PyTorch
model, past a change of the window: where a logit differs by more than `LOGIT_ERROR`, its rate is not shown.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import pairs
from peers import llama_cpp_step

import fairway
from fairway.data.tokenizer.byte import ByteTokenizer
from fairway.model.lm import ModelConfig
from fairway.serve.engine import Session
from fairway.serve.model import Model
from report import save

Prepared = tuple[Callable[[], None], dict[str, Any]]
SHAPES = {"small": (192, 6, 6, 1024), "mid": (384, 8, 8, 8192)}
"""Width, layers, heads, vocabulary."""
HIDDEN = {192: 512, 384: 1024}
"""Hidden width of a gated feed-forward with as many parameters as ours."""
OURS = ("fairway-int8", "fairway-int4", "fairway-artifact")
TRANSFORMERS = ("llama-fp32", "llama-bf16")
LLAMA_CPP = ("llama.cpp-Q8_0", "llama.cpp-Q4_0")
CHECKED, LOGIT_ERROR = 300, 1e-3


def random_model(shape: str, bits: int) -> Model:
    """A model of default parts whose matrices are random integers, as an artifact holds them."""
    width, layers, heads, vocabulary = SHAPES[shape]
    settings = {"width": width, "context": 256, "depth": layers, "mixer": {"kind": "attention", "heads": heads}}
    network = ModelConfig.read(settings).build(vocabulary, 0).eval().requires_grad_(False)
    random, largest, steps = torch.Generator().manual_seed(0), 2 ** (bits - 1) - 1, {}
    for name, weight in network.named_parameters():
        if weight.ndim == 2:
            code = torch.randint(-largest, largest + 1, weight.shape, generator=random)
            steps[name] = torch.full((len(weight),), 3**0.5 / largest / weight.shape[1] ** 0.5)
            weight.copy_(code * steps[name][:, None])
    return Model(network, ByteTokenizer(), steps=steps)


def largest_error(model: Model) -> float:
    """The largest difference of a logit from the PyTorch model's over some hundred tokens."""
    policy, vocabulary = model.policy(), model.network.vocabulary
    ours, theirs, worst = model.session([0], policy), Session(model.network, policy, [0]), 0.0
    for place in range(CHECKED):
        seen, wanted = ours.logits(), theirs.logits()
        worst = max(worst, float((seen - wanted).abs().max()))
        token = (int(wanted.argmax()) + place % 3) % vocabulary
        ours.push(token)
        theirs.push(token)
    return worst


def prepare_ours(name: str, chosen: argparse.Namespace) -> Prepared:
    bits = 8 if name.endswith("8") else 4
    model = fairway.load(chosen.artifact) if name.endswith("artifact") else random_model(chosen.shape[0], bits)

    def run() -> None:
        session = model.session([0])
        for _ in range(chosen.tokens):
            session.push(int(session.logits().argmax()))

    facts = {"session": type(model.session([0])).__name__, "largest_logit_error": largest_error(model)}
    return run, facts | {"parameters": sum(one.numel() for one in model.network.parameters())}


def shape_of(chosen: argparse.Namespace) -> tuple[int, int, int, int]:
    """Width, layers, heads and vocabulary of what is measured."""
    if chosen.shape[0] != "artifact":
        return SHAPES[chosen.shape[0]]
    network = fairway.load(chosen.artifact).network
    config = network.config
    return config.width, config.depth.layers, config.mixer[0].plain()["heads"], network.vocabulary


def prepare_transformers(name: str, chosen: argparse.Namespace) -> Prepared:
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, heads, vocabulary = shape_of(chosen)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=HIDDEN.get(width, round(width * 8 / 3)),
        num_hidden_layers=layers, num_attention_heads=heads, tie_word_embeddings=True,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    if name.endswith("bf16"):
        model = model.bfloat16()
    prompt, count = torch.zeros(1, 1, dtype=torch.int64), chosen.tokens

    @torch.inference_mode()
    def run() -> None:
        model.generate(prompt, attention_mask=prompt + 1, max_new_tokens=count, min_new_tokens=count, do_sample=False)

    return run, {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def prepare_llama_cpp(name: str, chosen: argparse.Namespace) -> Prepared:
    width, layers, heads, vocabulary = shape_of(chosen)
    path = Path(tempfile.mkdtemp()) / "model.gguf"
    hidden = HIDDEN.get(width, -(-width * 8 // 96) * 32)
    llama_cpp_step.write_model(path, width, layers, heads, vocabulary, hidden, name.rpartition("-")[2])
    return llama_cpp_step.decoder(path, vocabulary, chosen.threads[0], chosen.tokens), {"bytes": path.stat().st_size}


def prepare(name: str, chosen: argparse.Namespace) -> Prepared:
    torch.set_num_threads(chosen.threads[0])
    makers = {OURS: prepare_ours, TRANSFORMERS: prepare_transformers, LLAMA_CPP: prepare_llama_cpp}
    return next(make for names, make in makers.items() if name in names)(name, chosen)


def measure(shape: str, threads: int, chosen: argparse.Namespace) -> None:
    """One table: every contender for one shape and number of threads."""
    ours = OURS[2:] if shape == "artifact" else OURS[:2]
    peers = TRANSFORMERS
    if not llama_cpp_step.available():
        print("llama.cpp is not measured: the packages llama-cpp-python and gguf are not both installed.")
    elif shape_of(argparse.Namespace(shape=[shape], artifact=chosen.artifact))[0] % 32 == 0:
        peers += LLAMA_CPP
    options = {"--shape": shape, "--threads": threads, "--artifact": chosen.artifact, "--tokens": chosen.tokens}
    base = [__file__, *(str(part) for pair in options.items() for part in pair), "--contend"]
    measured = pairs.measure({name: [*base, name] for name in (*ours, *peers)}, chosen.rounds, threads)
    wrong = {name for name in ours if not measured[name].facts["largest_logit_error"] <= LOGIT_ERROR}
    for name in sorted(wrong):
        print(f"{name} is not shown: a logit was off by {measured[name].facts['largest_logit_error']}.")
    rates = {name: chosen.tokens / value.wall for name, value in measured.items() if name not in wrong}
    save(f"decode_speed_{shape}_{threads}t", measured, rates, "tokens per second", ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES, "artifact"], default=[*SHAPES, "artifact"])
    parser.add_argument("--artifact", default="runs/default/model.fwy")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--contend")
    chosen = parser.parse_args()
    if chosen.contend:
        pairs.serve(lambda: prepare(chosen.contend, chosen))
        return
    for shape in chosen.shape:
        if shape == "artifact" and not Path(chosen.artifact).exists():
            print(f"There is no artifact {chosen.artifact}; make run makes one.")
            continue
        for threads in chosen.threads:
            measure(shape, threads, chosen)


if __name__ == "__main__":
    main()
