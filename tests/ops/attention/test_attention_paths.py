"""Every fast path of attention against the definition: outputs and gradients, on each instruction level."""

import pytest
import torch
from torch import Tensor

from fairway.core import native
from fairway.core.seed import generator
from fairway.ops.attention import blocked, fastest, fused, naive
from laws.levels import EVERY_LEVEL, at_level

SHAPES = {
    "one token": (1, 2, 2, 1, 1, 8),
    "odd everything": (2, 3, 3, 37, 37, 6),
    "grouped queries": (2, 4, 2, 33, 33, 16),
    "one key group": (1, 4, 1, 20, 20, 32),
    "keys carried in": (2, 2, 1, 19, 50, 48),
    "several blocks": (1, 2, 2, 131, 140, 64),
}


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, an upstream gradient, and the first key each query may see."""
    batch, heads, groups, queries, keys, width = shape
    source = generator(0, "attention", str(shape))
    q, up = (torch.randn(batch, heads, queries, width, generator=source, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(batch, groups, keys, width, generator=source, dtype=torch.float64) for _ in range(2))
    own = torch.arange(keys - queries, keys)
    first = (own - torch.randint(0, 12, (batch, queries), generator=source)).clamp_min(0)
    return q.to(dtype), k.to(dtype), v.to(dtype), up.to(dtype), first


def gradients(
    attend, q: Tensor, k: Tensor, v: Tensor, up: Tensor, first: Tensor | None, cap: float | None
) -> list[Tensor]:
    """The output, and the gradients by q, k and v."""
    inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    y = attend(*inputs, first, cap)
    return [y.detach(), *torch.autograd.grad(y, inputs, up)]


def relative(seen: Tensor, wanted: Tensor) -> float:
    return float((seen.double() - wanted).norm() / wanted.norm().clamp_min(1e-12))


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_blocks_of_queries_give_what_single_queries_give(
    shape: tuple[int, ...], cap: float | None, restricted: bool
) -> None:
    q, k, v, up, first = drawn(shape, torch.float64)
    seen = gradients(blocked.attend, q, k, v, up, first if restricted else None, cap)
    wanted = gradients(naive.attend, q, k, v, up, first if restricted else None, cap)
    assert max(map(relative, seen, wanted)) < 1e-11


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fused_kernels_give_what_single_queries_give(shape: tuple[int, ...], restricted: bool) -> None:
    def fused_attend(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, cap: float | None) -> Tensor:
        assert cap is None
        return fused.attend(q, k, v, first)

    q, k, v, up, first = drawn(shape, torch.float64)
    seen = gradients(fused_attend, q, k, v, up, first if restricted else None, None)
    wanted = gradients(naive.attend, q, k, v, up, first if restricted else None, None)
    assert max(map(relative, seen, wanted)) < 1e-11


@pytest.mark.parametrize("level", EVERY_LEVEL)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_level_gives_what_the_definition_gives(
    shape: tuple[int, ...], dtype: torch.dtype, error: float, level: str | None
) -> None:
    q, k, v, up, first = drawn(shape, dtype)
    with at_level(level):
        for cap, visible in ((None, None), (3.0, first)):
            seen = gradients(fastest.attend, q, k, v, up, visible, cap)
            wanted = gradients(naive.attend, q.double(), k.double(), v.double(), up.double(), visible, cap)
            assert max(map(relative, seen, wanted)) < error


@pytest.mark.parametrize("level", [None, native.level() or "portable"])
def test_sixteen_thousand_keys_neither_overflow_nor_drift(level: str | None) -> None:
    tokens, asked = 16_384, 8
    q, k, v, up, _ = drawn((1, 1, 1, tokens, tokens, 8), torch.float64)
    up[:, :, :-asked] = 0.0
    wanted = gradients(naive.attend, q[:, :, -asked:], k, v, up[:, :, -asked:], None, None)
    with at_level(level):
        y, by_q, by_k, by_v = gradients(fastest.attend, q.float(), k.float(), v.float(), up.float(), None, None)
    seen = [y[:, :, -asked:], by_q[:, :, -asked:], by_k, by_v]
    assert max(map(relative, seen, wanted)) < 1e-5
    assert y.isfinite().all()
    assert not by_q[:, :, :-asked].any()


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_the_same_threads_give_the_same_bits(level: str | None) -> None:
    q, k, v, up, _ = drawn((2, 4, 2, 70, 70, 32), torch.bfloat16)
    with at_level(level):
        runs = [gradients(fastest.attend, q, k, v, up, None, None) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_how_the_upstream_gradient_lies_in_memory_changes_nothing(level: str | None) -> None:
    q, k, v, up, _ = drawn((2, 4, 2, 35, 35, 32), torch.bfloat16)
    layouts = (up, up.transpose(1, 2).contiguous().transpose(1, 2), up.repeat_interleave(2, -1)[..., ::2])
    with at_level(level):
        runs = [gradients(fastest.attend, q, k, v, layout, None, None) for layout in layouts]
    assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("level", EVERY_LEVEL)
def test_a_value_that_is_not_a_number_reaches_everyone_who_sees_it(level: str | None) -> None:
    q, k, v, _, _ = drawn((1, 1, 1, 40, 40, 16), torch.float32)
    v[0, 0, 25, 3] = float("nan")
    with at_level(level):
        y = fastest.attend(q, k, v)
    assert y[0, 0, 25:, 3].isnan().all()
    assert not y[0, 0, :, :3].isnan().any()


@pytest.mark.parametrize("level", native.LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_do_not_touch_keys_that_no_one_sees(dtype: torch.dtype, level: str) -> None:
    hidden, tokens = 96, 200
    q, k, v, up, _ = drawn((1, 2, 1, tokens, tokens, 16), dtype)
    k[:, :, :hidden] = v[:, :, :hidden] = float("nan")
    first = torch.arange(tokens).clamp_max(hidden)[None]
    with at_level(level):
        y, by_q, by_k, by_v = gradients(fastest.attend, q, k, v, up, first, None)
    assert all(x[:, :, 128:].isfinite().all() for x in (y, by_q, by_k, by_v))
    q, k, v, up = (x[:, :, hidden:].double() for x in (q, k, v, up))
    kept = gradients(naive.attend, q, k, v, up, None, None)
    seen = [x[:, :, 128:] for x in (y, by_q, by_k, by_v)]
    assert max(map(relative, seen, [x[:, :, 128 - hidden :] for x in kept])) < (
        1e-2 if dtype == torch.bfloat16 else 2e-6
    )


def test_the_registered_op_is_differentiable_and_has_a_fake() -> None:
    with at_level("portable"):
        q, k, v = (torch.randn(1, 17, 2, 8, generator=generator(0, name), requires_grad=True) for name in "qkv")
        result = torch.library.opcheck(torch.ops.fairway.attention.default, (q, k, v, None, 0.0))
    assert set(result.values()) == {"SUCCESS"}
