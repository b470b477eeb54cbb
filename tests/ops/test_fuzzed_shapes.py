"""Kernels on shapes, strides and formats that nobody chose: the definition's results, and twice the same bits."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairway.core import native
from fairway.core.seed import generator
from fairway.ops.add_rms_norm import naive as add_naive
from fairway.ops.add_rms_norm.native import add_rms_norm
from fairway.ops.attention import naive as attention_naive
from fairway.ops.attention.native import attend
from fairway.ops.gate import naive as gate_naive
from fairway.ops.gate.native import gate
from fairway.ops.norm_rotate import naive as turn_naive
from fairway.ops.norm_rotate.native import norm_rotate
from fairway.ops.relu2 import naive as relu2_naive
from fairway.ops.relu2.native import relu2
from fairway.ops.rms_norm import naive as rms_naive
from fairway.ops.rms_norm.native import rms_norm
from laws.levels import at_level

EPS = 1e-3
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Op:
    """The kernel and the definition, of tensors (B, T, H, K)."""

    inputs: int
    ours: Function
    definition: Function


def angles(time: int, width: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(time * (width // 2), dtype=torch.float64).view(time, width // 2)
    return angle.cos(), angle.sin()


def turned(x: Tensor) -> Tensor:
    cos, sin = (table.float() for table in angles(x.shape[1], x.shape[3]))
    return norm_rotate(x, None, None, cos, sin, EPS, x.dtype)


def definition_of_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention_naive.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


OPS = {
    "rms_norm": Op(1, lambda x: rms_norm(x, None, EPS, x.dtype), lambda x: rms_naive.rms_norm(x, None, EPS)),
    "relu2": Op(1, relu2, relu2_naive.relu2),
    "gate": Op(1, lambda x: gate(x, "silu"), lambda x: gate_naive.gate(x, "silu")),
    "add_rms_norm": Op(
        2,
        lambda x, b: torch.cat(add_rms_norm(x, b, None, EPS, x.dtype)),
        lambda x, b: torch.cat(add_naive.add_rms_norm(x, b, None, EPS)),
    ),
    "norm_rotate": Op(1, turned, lambda x: turn_naive.norm_rotate(x, None, None, *angles(x.shape[1], x.shape[3]), EPS)),
    "attention": Op(3, attend, definition_of_attention),
}


def drawn(shape: tuple[int, ...], name: str, dtype: torch.dtype, in_one_piece: bool) -> Tensor:
    batch, time, heads, width = shape
    x = torch.randn(batch, heads, time, width, generator=generator(0, name), dtype=torch.float64).to(dtype)
    x = x.transpose(1, 2)
    return (x.contiguous() if in_one_piece else x).requires_grad_()


@pytest.mark.parametrize("name", OPS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 35), st.integers(1, 3), st.integers(1, 20), st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_any_shape_gives_the_definitions_values_and_the_same_bits_again(
    name: str, batch: int, time: int, heads: int, pairs: int, in_one_piece: bool, dtype: torch.dtype
) -> None:
    op, shape = OPS[name], (batch, time, heads, 2 * pairs)
    given_x = [drawn(shape, f"x{index}", dtype, in_one_piece) for index in range(op.inputs)]
    wide = [x.detach().double().requires_grad_() for x in given_x]
    wanted_y = op.definition(*wide)
    up = torch.randn(wanted_y.shape, generator=generator(0, "up"), dtype=torch.float64).to(dtype)
    wanted = [wanted_y.detach(), *torch.autograd.grad(wanted_y, wide, up.double())]
    with at_level(native.level() or "portable"):
        y = op.ours(*given_x)
        seen = [y, *torch.autograd.grad(y, given_x, up)]
        again = op.ours(*given_x)
        assert torch.equal(again, y)
        assert all(map(torch.equal, torch.autograd.grad(again, given_x, up), seen[1:]))
    error = 3e-5 if dtype == torch.float32 else 3e-2
    for one, other in zip(seen, wanted, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).norm() <= error * (other.norm() + up.double().norm())
