"""The recurrences of `kernel_speed.py`: each beside the functions of other libraries that compute the same.

2,048 tokens in sequences of 512 or in one, a model width of 256, set against the definition of each in float64.
Float32, and four of them once more with queries, keys and values in bfloat16, as a model trained in it hands them over;
what is right is then the definition of these rounded inputs. At the least, every tensor and its gradient are read
or written once, and every number of the state is multiplied as in the definition, forward and twice over backward;
rates of products are bfloat16's, so that float32 stays far below the limit. Shape key: B batch, T time, H heads, K head
width, D channels, N state width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from kernel_cases import Case, Function, drawn
from peers.sequence_layers import qwen_rule
from torch import Tensor
from torch.nn import functional

from fairway.ops.delta import fastest as delta
from fairway.ops.delta import naive as delta_naive
from fairway.ops.gla import fastest as gla
from fairway.ops.gla import naive as gla_naive
from fairway.ops.retention import fastest as retention
from fairway.ops.retention import naive as retention_naive
from fairway.ops.selective_scan import fastest as selective_scan
from fairway.ops.selective_scan import naive as selective_scan_naive
from fairway.ops.ssd import native as ssd
from fairway.ops.wkv4 import fastest as wkv4
from fairway.ops.wkv4 import naive as wkv4_naive
from laws.fla import naive

TOKENS, HEADS, WIDTH = 2_048, 4, 64
CHANNELS, STATE = 512, 16
SCALE = WIDTH**0.5
"""The other libraries divide queries by this; ours take them as they come."""


def scan(length: int) -> Case:
    """Mamba's selective scan over 512 channels with a state of 16."""

    def inputs() -> list[Tensor]:
        shape, read = (TOKENS // length, length, CHANNELS), (TOKENS // length, length, STATE)
        shapes = (shape, shape, (CHANNELS, STATE), read, read, (CHANNELS,))
        x, delta_BTD, A, *rest = drawn(torch.float32, *shapes)
        return [x, 0.1 * functional.softplus(delta_BTD), -functional.softplus(A), *rest]

    def mambapy(x: Tensor, delta_BTD: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        from mambapy.mamba import MambaBlock

        return MambaBlock.selective_scan(None, x, delta_BTD, A, B, C, D)

    numbers = TOKENS * CHANNELS
    return _case(inputs, selective_scan.selective_scan, selective_scan_naive.selective_scan, {"mambapy": mambapy},
                 state=numbers * STATE, numbers=3 * numbers)  # fmt: skip


def _case(
    inputs: Callable[[], list[Tensor]], ours: Function, definition: Function, peers: dict[str, Function], state: int,
    numbers: int, dtype: torch.dtype = torch.float32,
) -> Case:  # fmt: skip
    """`state` numbers of state over all tokens, and `numbers` of inputs and outputs."""
    traffic, error = 3.0 * dtype.itemsize * numbers, 1e-4 if dtype == torch.float32 else 1e-2
    return Case(inputs, _outputs(ours), peers, _outputs(definition), flops=12.0 * state, bytes=traffic, error=error)


def _outputs(function: Function) -> Function:
    return lambda *inputs: function(*inputs)[0]


def _of_heads(
    length: int, ours: Function, definition: Function, peers: dict[str, Function], *more: str,
    dtype: torch.dtype = torch.float32,
) -> Case:  # fmt: skip
    """An op of queries, keys of length one, values, and `more`: rates of writing, decays of heads or of features.

    The former are of the dtype, the latter float32.
    """

    def inputs() -> list[Tensor]:
        BTHK = (TOKENS // length, length, HEADS, WIDTH)
        BTH = BTHK[:3]
        q, k, v, beta, decay_BTH, decay_BTHK = drawn(torch.float32, BTHK, BTHK, BTHK, BTH, BTH, BTHK)
        rest = {
            "beta": beta.sigmoid(),
            "decay_BTH": functional.logsigmoid(decay_BTH + 2),
            "decay_BTHK": functional.logsigmoid(decay_BTHK + 2),
        }
        return [*(x.to(dtype) for x in (q, functional.normalize(k, dim=-1), v)), *(rest[name] for name in more)]

    numbers = TOKENS * HEADS * WIDTH
    return _case(inputs, ours, definition, peers, state=numbers * WIDTH, numbers=(4 + len(more)) * numbers,
                 dtype=dtype)  # fmt: skip


def gated_linear_attention(length: int) -> Case:
    def theirs(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
        return naive("gla").naive_recurrent_gla(q * SCALE, k, v, decay)[0]

    return _of_heads(length, gla.gla, gla_naive.gla, {"fla naive": theirs}, "decay_BTHK")


def scalar_decay(length: int, dtype: torch.dtype = torch.float32) -> Case:
    """One decay for a head and token: the state space of Mamba-2."""

    def ours(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Any:
        return ssd.recurrence(q, k, v, decay, decay.new_zeros(len(q), HEADS, WIDTH, WIDTH), None)

    def definition(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Any:
        return gla_naive.gla(q, k, v, decay.unsqueeze(-1).expand_as(k))

    def theirs(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
        return naive("simple_gla").naive_chunk_simple_gla(q, k, v, decay, scale=1.0)[0]

    return _of_heads(length, ours, definition, {"fla naive chunks": theirs}, "decay_BTH", dtype=dtype)


def retaining(length: int, dtype: torch.dtype = torch.float32) -> Case:
    def decays(op: Function) -> Function:
        log_decay_H = torch.log1p(-torch.exp2(-5.0 - torch.arange(HEADS)))
        return lambda q, k, v: op(q, k, v, log_decay_H.to(torch.promote_types(q.dtype, torch.float32)))

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(1, 2) for x in (q * SCALE, k, v))
        return naive("retention").naive_retention(*heads_first).transpose(1, 2)

    ours, definition = decays(retention.retention), decays(retention_naive.retention)
    return _of_heads(length, ours, definition, {"fla naive": theirs}, dtype=dtype)


def delta_rule(length: int, dtype: torch.dtype = torch.float32) -> Case:
    def theirs(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        """It mixes bfloat16 with float32 in one product, which torch refuses, and so gets float32."""
        heads_first = (x.to(beta.dtype).transpose(1, 2) for x in (q * SCALE, k, v, beta))
        return naive("delta_rule").delta_rule_chunkwise(*heads_first)[0].transpose(1, 2).to(q.dtype)

    return _of_heads(length, delta.delta, delta_naive.delta, {"fla naive chunks": theirs}, "beta", dtype=dtype)


def gated_delta_rule(length: int, dtype: torch.dtype = torch.float32) -> Case:
    def qwen(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
        return qwen_rule()(q * SCALE, k, v, decay, beta, chunk_size=64)[0]

    def theirs(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
        return naive("gated_delta_rule").naive_chunk_gated_delta_rule(q, k, v, decay, beta, scale=1.0)[0]

    peers = {"transformers": qwen, "fla naive chunks": theirs}
    return _of_heads(length, delta.delta, delta_naive.delta, peers, "beta", "decay_BTH", dtype=dtype)


def rwkv(length: int) -> Case:
    """RWKV-4's weighted average over 256 channels."""
    shape = (TOKENS // length, length, HEADS * WIDTH)

    def inputs() -> list[Tensor]:
        k, v, w, u = drawn(torch.float32, shape, shape, shape[2:], shape[2:])
        return [k, v, functional.softplus(w), u]

    def theirs(k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
        from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

        return rwkv_linear_attention_cpu(w.log(), u, k, v)[0]

    numbers = TOKENS * shape[2]
    return _case(inputs, wkv4.wkv4, wkv4_naive.wkv4, {"transformers": theirs}, state=2 * numbers, numbers=3 * numbers)


def recurrences() -> dict[str, Callable[[], Case]]:
    """Every recurrence by the name it has in the table."""
    made = {
        "selective scan D512 N16": scan,
        "gated linear attention H4 K64": gated_linear_attention,
        "decay of heads H4 K64": scalar_decay,
        "retention H4 K64": retaining,
        "delta rule H4 K64": delta_rule,
        "gated delta rule H4 K64": gated_delta_rule,
        "RWKV-4 D256": rwkv,
    }
    lengths = (512, TOKENS)
    half = {
        f"{name} T{length} bf16": partial(made[name], length, torch.bfloat16)
        for name in ("decay of heads H4 K64", "retention H4 K64", "delta rule H4 K64", "gated delta rule H4 K64")
        for length in lengths
    }
    return {f"{name} T{length}": partial(case, length) for name, case in made.items() for length in lengths} | half
