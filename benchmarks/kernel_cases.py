"""The operations of `kernel_speed.py`: inputs, Fairway's way, the peers' ways, and what the machine must at least do.

Shape key: B batch, T time, H heads, G key groups, K head width, N tokens, D width, F hidden width, V vocabulary, E
experts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.seed import generator
from fairway.loss.next_token import NextTokenConfig, next_token
from fairway.model.ffn import gated, moe
from fairway.ops.add_rms_norm.native import add_rms_norm
from fairway.ops.attention.fastest import attend
from fairway.ops.cross_entropy.table import Table
from fairway.ops.gate.native import gate
from fairway.ops.layer_norm.native import layer_norm
from fairway.ops.norm_rotate.native import norm_rotate
from fairway.ops.relu2.native import relu2
from fairway.ops.rms_norm.native import rms_norm
from fairway.ops.squash.native import squash

TOKENS = 4096
Function = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One operation, forward and backward."""

    inputs: Callable[[], list[Tensor]]
    """What is differentiated by."""
    ours: Function
    peers: dict[str, Function]
    definition: Function | None = None
    """What is right when run in float64; the first peer if not given."""
    flops: float = 0.0
    bytes: float = 0.0
    """Least traffic, forward and backward."""
    error: float = 1e-2
    """Relative distance from float64 of the output and of every gradient that passes as correct."""
    peer_error: float | None = None
    """The same for peers, where it is not `error`."""
    compiles: bool = False
    """Whether the first peer also runs compiled."""
    autocast: bool = False
    extra: tuple[Any, ...] = ()
    """Further arguments, not differentiated by."""


def drawn(dtype: torch.dtype, *shapes: Sequence[int]) -> list[Tensor]:
    """Normal numbers, the same in every process."""
    source = generator(0, "benchmark")
    return [torch.randn(tuple(shape), generator=source).to(dtype) for shape in shapes]


def attention(context: int, width: int, groups: int | None = None) -> Case:
    """Causal attention of 4,096 tokens and a model width of 192, or two heads of 128."""
    heads, batch = max(2, 192 // width), TOKENS // context
    groups = groups or heads
    shapes = [(batch, count, context, width) for count in (heads, groups, groups)]

    def peer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups != heads)

    flops = 7.0 * batch * heads * context * (context + 1) * width
    return Case(partial(_heads, shapes), attend, {"SDPA": peer}, flops=flops)


def windowed_attention(context: int, width: int, window: int) -> Case:
    """The same where each token sees `window` tokens up to itself; the peer is given them as a mask."""
    place = torch.arange(context)
    first = (place - window + 1).clamp_min(0)[None].expand(TOKENS // context, -1)
    mask = (place[:, None] >= place) & (place[:, None] < place + window)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, first)

    def peer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    heads = max(2, 192 // width)
    shapes = [(TOKENS // context, heads, context, width)] * 3
    flops = 14.0 * TOKENS * heads * width * float(mask.sum()) / context
    return Case(partial(_heads, shapes), ours, {"SDPA": peer}, flops=flops)


def _heads(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Time before heads in memory, as projections leave them."""
    return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in drawn(torch.bfloat16, *shapes)]


def norm(ours: Function, peer: Function, rows: int, width: int, learned: Sequence[Sequence[int]]) -> Case:
    """A norm over float32 rows. Forward reads and writes them once, backward reads two tensors and writes one."""
    inputs = partial(drawn, torch.float32, (rows, width), *learned)
    return Case(inputs, ours, {"torch": peer}, bytes=4.0 * 5 * rows * width, error=2e-5, compiles=True)


def norms(rows: int, width: int) -> dict[str, Case]:
    gain, scalar = (width,), ()
    size = f"{rows}x{width}"
    return {
        f"RMSNorm {size}": norm(
            lambda x, g: rms_norm(x, g, 1e-6, x.dtype),
            lambda x, g: functional.rms_norm(x, (width,), g, 1e-6),
            rows, width, [gain],
        ),
        f"LayerNorm {size}": norm(
            lambda x, g, b: layer_norm(x, g, b, 1e-5, x.dtype),
            lambda x, g, b: functional.layer_norm(x, (width,), g, b, 1e-5),
            rows, width, [gain, gain],
        ),
        f"DyT {size}": norm(
            lambda x, g, b, a: squash(x, a, None, g, b, "tanh"),
            lambda x, g, b, a: torch.tanh(x * a) * g + b,
            rows, width, [gain, gain, scalar],
        ),
        f"Derf {size}": norm(
            lambda x, g, b, a, s: squash(x, a, s, g, b, "erf"),
            lambda x, g, b, a, s: torch.erf(x * a + s) * g + b,
            rows, width, [gain, gain, scalar, scalar],
        ),
    }  # fmt: skip


def norm_after_adding(rows: int, width: int) -> Case:
    """A bfloat16 branch added to the float32 stream, and the bfloat16 norm of the sum; both are results.

    Forward reads stream and branch and writes sum and norm; backward reads the sum and both gradients and writes two.
    """

    def inputs() -> list[Tensor]:
        x_ND, branch_ND, gain_D = drawn(torch.float32, (rows, width), (rows, width), (width,))
        return [x_ND, branch_ND.bfloat16(), gain_D]

    def ours(x_ND: Tensor, branch_ND: Tensor, gain_D: Tensor) -> tuple[Tensor, ...]:
        return add_rms_norm(x_ND, branch_ND, gain_D, 1e-6, torch.bfloat16)

    def peer(x_ND: Tensor, branch_ND: Tensor, gain_D: Tensor) -> tuple[Tensor, ...]:
        total_ND = x_ND + branch_ND
        return total_ND, functional.rms_norm(total_ND, (width,), gain_D, 1e-6).to(branch_ND.dtype)

    return Case(inputs, ours, {"torch": peer}, bytes=26.0 * rows * width, error=6e-3, compiles=True)


def qk_norm_and_rotation(dtype: torch.dtype, heads: int = 6, width: int = 32, context: int = 256) -> Case:
    """Queries of 4,096 tokens, normalised by head, with a factor of each head, and rotated."""
    angle_TR = torch.arange(context)[:, None] * 10_000.0 ** (-torch.arange(width // 2) / (width // 2))
    cos_TR, sin_TR = angle_TR.cos(), angle_TR.sin()

    def inputs() -> list[Tensor]:
        x_BTHK, gain_K, factor_H = drawn(torch.float32, (TOKENS // context, context, heads, width), (width,), (heads,))
        return [x_BTHK.to(dtype), gain_K, factor_H]

    def ours(x_BTHK: Tensor, gain_K: Tensor, factor_H: Tensor) -> Tensor:
        return norm_rotate(x_BTHK, gain_K, factor_H, cos_TR, sin_TR, 1e-6, x_BTHK.dtype)

    def peer(x_BTHK: Tensor, gain_K: Tensor, factor_H: Tensor) -> Tensor:
        y_BTHK = functional.rms_norm(x_BTHK, (width,), gain_K.to(x_BTHK.dtype), 1e-6)
        first, second = (y_BTHK * factor_H[:, None].to(x_BTHK.dtype)).chunk(2, dim=-1)
        cos, sin = (table_TR[:, None].to(x_BTHK.dtype) for table_TR in (cos_TR, sin_TR))
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

    error = 1e-2 if dtype == torch.bfloat16 else 2e-5
    traffic = 5.0 * dtype.itemsize * TOKENS * heads * width
    return Case(inputs, ours, {"torch": peer}, bytes=traffic, error=error, peer_error=2 * error, compiles=True)


def gates() -> dict[str, Case]:
    def swiglu(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return functional.silu(a) * b

    size = 2.0 * TOKENS * 768
    plain, both = (partial(drawn, torch.bfloat16, (TOKENS, width)) for width in (768, 1024))
    return {
        "ReLU^2 4096x768": Case(
            plain, relu2, {"torch": lambda x: functional.relu(x).square()}, bytes=5 * size, compiles=True
        ),
        "SwiGLU 4096x512": Case(
            both, lambda x: gate(x, "silu"), {"torch": swiglu}, bytes=2.0 * TOKENS * 512 * 8, compiles=True
        ),
    }


def linear_cross_entropy(width: int, vocabulary: int, cap: float | None = None) -> Case:
    """The mean next-token loss from the last hidden vectors and the table, its logits softly capped or not."""
    target = torch.randint(0, vocabulary, (TOKENS,), generator=generator(0, "targets"))

    def ours(h_ND: Tensor, table_VD: Tensor, target_N: Tensor) -> Tensor:
        return next_token(Table(table_VD), [table_VD], h_ND, target_N, NextTokenConfig(), cap).loss  # pyrefly: ignore

    def plain(h_ND: Tensor, table_VD: Tensor, target_N: Tensor) -> Tensor:
        logits_NV = functional.linear(h_ND, table_VD)
        return functional.cross_entropy(logits_NV if cap is None else cap * torch.tanh(logits_NV / cap), target_N)

    peers: dict[str, Function] = {"torch": plain}
    if cap is None and hasattr(functional, "linear_cross_entropy"):
        peers["linear_cross_entropy"] = functional.linear_cross_entropy

    def inputs() -> list[Tensor]:
        h_ND, table_VD = drawn(torch.float32, (TOKENS, width), (vocabulary, width))
        return [h_ND, table_VD / width**0.5]

    return Case(
        inputs, ours, peers, flops=6.0 * TOKENS * width * vocabulary, compiles=True, autocast=True, extra=(target,),
    )  # fmt: skip


def experts() -> Case:
    """8 experts of hidden width 256, 2 for each token, beside Mixtral's block of transformers with the same weights.

    Mixtral's router multiplies in bfloat16 here, and where two experts are close it may choose the other one.
    """
    width, hidden, count = 192, 256, 8

    def block() -> Any:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        config = MixtralConfig(
            hidden_size=width, intermediate_size=hidden, num_local_experts=count, num_experts_per_tok=2
        )
        config._experts_implementation = "eager"
        return MixtralSparseMoeBlock(config)

    def call(module: Any, names: Sequence[str], x: Tensor, *weights: Tensor) -> Tensor:
        parameters = dict(zip(names, weights, strict=True))
        y = torch.func.functional_call(module.to(x.dtype), parameters, (x,))
        return y[0] if isinstance(y, tuple) else y

    ours = moe.MixtureOfExperts(width, moe.Config(experts=count, top=2, expert="swiglu", balance=0.0))
    assert ours.hidden == hidden
    theirs = partial(call, block(), ("gate.weight", "experts.gate_up_proj", "experts.down_proj"))

    def inputs() -> list[Tensor]:
        shapes = ((4, 1024, width), (count, width), (count, 2 * hidden, width), (count, width, hidden))
        x, *weights = drawn(torch.float32, *shapes)
        return [x, *(weight / weight.shape[-1] ** 0.5 for weight in weights)]

    flops = 3.0 * 2 * TOKENS * 2 * 3 * width * hidden
    mine = partial(call, ours, ("router_ED", "input_EJD", "output_EDF"))
    return Case(inputs, mine, {"Mixtral": theirs}, flops=flops, autocast=True, error=3e-2, peer_error=0.1)


def dense() -> Case:
    """The dense feed-forward with as many products a token as two experts, to set `experts` against."""
    layer = gated.Gated(192, gated.Config.model_validate({"kind": "swiglu"}))

    def ours(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return functional.linear(gate(functional.linear(x, first), layer.point), second)

    def plain(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        a, b = functional.linear(x, first).chunk(2, dim=-1)
        return functional.linear(functional.silu(a) * b, second)

    def inputs() -> list[Tensor]:
        x, first, second = drawn(torch.float32, (TOKENS, 192), (1024, 192), (192, 512))
        return [x, first / 192**0.5, second / 512**0.5]

    flops = 3.0 * 2 * TOKENS * 3 * 192 * 512
    return Case(inputs, ours, {"torch": plain}, flops=flops, autocast=True, compiles=True)


def cases() -> dict[str, Callable[[], Case]]:
    """Every operation by the name it has in the table."""
    found: dict[str, Callable[[], Case]] = {
        f"attention T{context} K{width}": partial(attention, context, width)
        for context in (256, 1024, 2048)
        for width in (32, 64, 128)
    }
    found["attention T1024 K32, 2 key groups"] = partial(attention, 1024, 32, 2)
    found["attention T1024 K64, window 256"] = partial(windowed_attention, 1024, 64, 256)
    for size in ((8192, 192), (8192, 1024)):
        found |= {name: partial(lambda case: case, case) for name, case in norms(*size).items()}
    found["add + RMSNorm 8192x192"] = partial(norm_after_adding, 8192, 192)
    found["add + RMSNorm 8192x1024"] = partial(norm_after_adding, 8192, 1024)
    found["QK-norm + RoPE 4096x6x32 bf16"] = partial(qk_norm_and_rotation, torch.bfloat16)
    found["QK-norm + RoPE 4096x6x32 fp32"] = partial(qk_norm_and_rotation, torch.float32)
    found |= {name: partial(lambda case: case, case) for name, case in gates().items()}
    found["linear + cross-entropy N4096 D192 V1024"] = partial(linear_cross_entropy, 192, 1024)
    found["linear + cross-entropy N4096 D384 V8192"] = partial(linear_cross_entropy, 384, 8192)
    found["linear + capped cross-entropy N4096 D192 V1024"] = partial(linear_cross_entropy, 192, 1024, 30.0)
    found["experts N4096 D192 F256 E8 top 2"] = experts
    found["dense SwiGLU N4096 D192 F512"] = dense
    return found
