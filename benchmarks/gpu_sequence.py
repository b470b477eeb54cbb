"""Forward and backward pass of sequence mixing on a GPU: Triton beside fla, torch's attention and PyTorch chunks.

`python benchmarks/gpu_sequence.py [--rounds 7] [--lengths 2048 8192 32768]`, about 10 minutes. bfloat16, 16 heads of
64, 32,768 tokens in all. Every contender is first compared with float64 on shorter inputs; one that is wrong gets no
rate. Without a GPU it says so. `--tiny` runs what a CPU can, at small sizes, to test the script.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

import pairs

from report import save

HEADS, WIDTH, TOKENS, CHECKED = 16, 64, 32_768, 300
TINY_HEADS, TINY_WIDTH, TINY_TOKENS = 2, 16, 256
OPS = ("gla", "retention", "ssd", "delta")
FORMS = ("triton", "chunk", "fla", "sdpa")
OURS = ("triton", "chunk")
LIMIT = 3e-2
"""Largest relative error of outputs and gradients in bfloat16."""
PASSES = 5


def inputs(op: str, batch: int, length: int, tiny: bool, device: str) -> list[Tensor]:
    """Queries, keys, values, and what else an op takes, in float32."""
    heads, width = (TINY_HEADS, TINY_WIDTH) if tiny else (HEADS, WIDTH)
    source = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    q, k, v = (draw(batch, length, heads, width) for _ in range(3))
    q = q / width**0.5
    if op == "retention":
        more = [torch.log1p(-torch.exp2(-5.0 - torch.arange(heads) / 2))]
    elif op == "gla":
        more = [functional.logsigmoid(draw(batch, length, heads, width) + 3) / 16]
    elif op == "ssd":
        more = [functional.softplus(draw(batch, length, heads) - 3), -torch.rand(heads, generator=source) * 15 - 1]
    else:
        k = functional.normalize(k, dim=-1)
        more = [draw(batch, length, heads).sigmoid(), functional.logsigmoid(draw(batch, length, heads) + 4)]
    return [x.to(device) for x in (q, k, v, *more)]


def own(op: str, form: str, *given: Tensor) -> Tensor:
    """Fairway's op in one of its forms."""
    function = getattr(importlib.import_module(f"fairway.ops.{op}.{form}"), op)
    if op == "ssd":
        q, k, v, delta, A = given
        return function(v, delta, A, k, q, None, None, None)[0]
    return function(*given, None, None)[0]


def fla(op: str, *given: Tensor) -> Tensor:
    """The same by flash-linear-attention."""
    q, k, v, *more = given
    if op == "gla":
        from fla.ops.gla import chunk_gla

        return chunk_gla(q, k, v, more[0].to(q.dtype), scale=1.0)[0]
    if op == "delta":
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        return chunk_gated_delta_rule(q, k, v, g=more[1], beta=more[0].to(q.dtype), scale=1.0)[0]
    from fla.ops.simple_gla import chunk_simple_gla

    if op == "retention":
        return chunk_simple_gla(q, k, v, g=more[0].expand(q.shape[:3]).contiguous(), scale=1.0)[0]
    return chunk_simple_gla(q, k, (v * more[0][..., None]).to(v.dtype), g=more[0] * more[1], scale=1.0)[0]


def attention(*given: Tensor) -> Tensor:
    """Causal attention by torch, whatever the op."""
    q, k, v = (x.transpose(1, 2) for x in given[:3])
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0).transpose(1, 2)


def contender(op: str, form: str) -> Callable[..., Tensor]:
    """The function to measure."""
    if form == "sdpa":
        return attention
    return partial(fla, op) if form == "fla" else partial(own, op, form)


def results(function: Callable[..., Tensor], given: list[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    """The output, and gradients by queries, keys and values; these are rounded to bfloat16 first."""
    wide = torch.float64 if dtype is None else torch.float32
    leaves = [x.bfloat16().to(dtype or wide).requires_grad_() for x in given[:3]] + [x.to(wide) for x in given[3:]]
    output = function(*leaves)
    up = torch.linspace(-1, 1, output.numel(), dtype=torch.float64, device=output.device).view(output.shape).cos()
    return [output.detach(), *torch.autograd.grad((output * up).sum(), leaves[:3])]


def error(op: str, form: str, tiny: bool, device: str) -> float:
    """Largest relative error against the definition in float64."""
    given = inputs(op, 1, CHECKED, tiny, device)
    seen = results(contender(op, form), given, torch.bfloat16)
    exact = results(attention if form == "sdpa" else partial(own, op, "naive"), given, None)
    return max(float((x.double() - y).norm() / y.norm()) for x, y in zip(seen, exact, strict=True))


def contend(op: str, form: str, length: int, tiny: bool) -> None:
    """One contender's process."""
    device = "cpu" if tiny else "cuda"

    def prepare() -> tuple[Callable[[], None], dict[str, Any]]:
        facts = {"error": error(op, form, tiny, device)}
        given = inputs(op, (TINY_TOKENS if tiny else TOKENS) // length, length, tiny, device)
        leaves = [x.bfloat16().requires_grad_() for x in given[:3]] + [x.requires_grad_() for x in given[3:]]
        function = contender(op, form)
        up = torch.ones_like(leaves[2])

        def run() -> None:
            for _ in range(PASSES):
                wanted = leaves[:3] if form == "sdpa" else leaves
                torch.autograd.grad(function(*leaves), wanted, up)
            if not tiny:
                torch.cuda.synchronize()
                facts["peak_bytes"] = torch.cuda.max_memory_allocated()

        return run, facts

    pairs.serve(prepare)


def compared(op: str, length: int, rounds: int, tiny: bool) -> None:
    """Measures every form of an op at one length."""
    forms = [form for form in FORMS if form != "fla" or (not tiny and importlib.util.find_spec("fla") is not None)]
    forms = [form for form in forms if form != "triton" or not tiny]
    flags = ["--tiny"] if tiny else []
    commands = {form: [__file__, "--contend", op, form, "--lengths", str(length), *flags] for form in forms}
    measured = pairs.measure(commands, rounds, 1)
    wrong = {form: value.facts["error"] for form, value in measured.items() if value.facts["error"] > LIMIT}
    for form, off in wrong.items():
        print(f"{op} at {length}: {form} is off by {off:.1e} and gets no rate")
    right = {form: value for form, value in measured.items() if form not in wrong}
    tokens = PASSES * (TINY_TOKENS if tiny else TOKENS)
    rates = {form: tokens / value.wall for form, value in right.items()}
    if set(rates) - set(OURS):
        save(f"gpu_sequence_{op}_{length}{'_tiny' if tiny else ''}", right, rates, "tokens/s", OURS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--contend", nargs=2)
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    lengths = chosen.lengths or ([128] if chosen.tiny else [2048, 8192, 32_768])
    if chosen.contend:
        contend(*chosen.contend, lengths[0], chosen.tiny)
    elif chosen.tiny or torch.cuda.is_available():
        for op in chosen.ops:
            for length in lengths:
                compared(op, length, chosen.rounds, chosen.tiny)
    else:
        print("There is no CUDA device here; nothing was measured.")


if __name__ == "__main__":
    main()
