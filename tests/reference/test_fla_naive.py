"""Recurrences against flash-linear-attention's naive functions: outputs, final states and every gradient.

They scale queries by 1 / sqrt(K), ours take them as they come, and they compute in float32.
Shape key: B batch, T time, H heads, K key width, V value width.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fairway.core.seed import generator
from fairway.ops.delta.naive import delta
from fairway.ops.gla.naive import gla
from fairway.ops.retention.naive import retention
from laws.fla import PACKAGE, naive

BATCH, TIME, HEADS, KEY, VALUE = 2, 19, 3, 8, 5
SCALE = KEY**0.5

pytestmark = pytest.mark.skipif(PACKAGE is None, reason="fla-core is not installed")


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(BATCH, TIME, HEADS, *shape, dtype=torch.float64, generator=generator(0, name))


def inputs() -> dict[str, Tensor]:
    """Queries, keys of length one, values, rates of writing and log-decays by key channel, head and token."""
    return {
        "q": draw("q", KEY),
        "k": functional.normalize(draw("k", KEY), dim=-1),
        "v": draw("v", VALUE),
        "beta": draw("beta").sigmoid(),
        "decay": functional.logsigmoid(draw("decay", KEY)),
        "decay_BTH": functional.logsigmoid(draw("decay of heads")),
    }


def ours_and_naive(name: str, x: dict[str, Tensor]) -> tuple[tuple[Tensor, Any], tuple[Tensor, Any]]:
    q, k, v, beta, decay, decay_BTH = x.values()
    y_q = q * SCALE
    match name:
        case "gla":
            found = naive("gla").naive_recurrent_gla(y_q, k, v, decay, output_final_state=True)
            return gla(q, k, v, decay), found
        case "gla, one decay for a head":
            wide = decay_BTH[..., None].expand_as(k)
            found = naive("simple_gla").naive_recurrent_simple_gla(y_q, k, v, decay_BTH)
            return gla(q, k, v, wide), found
        case "retention":
            log_decay_H = torch.log1p(-torch.exp2(-5.0 - torch.arange(HEADS, dtype=torch.float64)))
            found = naive("retention").naive_retention(*(one.transpose(1, 2) for one in (y_q, k, v)))
            return (retention(q, k, v, log_decay_H)[0], None), (found.transpose(1, 2), None)
        case "delta":
            y, state = naive("delta_rule").delta_rule_recurrence(*(one.transpose(1, 2) for one in (y_q, k, v, beta)))
            return delta(q, k, v, beta), (y.transpose(1, 2), state)
        case "gated delta":
            rule = naive("gated_delta_rule").naive_recurrent_gated_delta_rule
            found = rule(q, k, v, beta, decay_BTH, scale=1.0, output_final_state=True)
            return delta(q, k, v, beta, decay_BTH), found
        case _:
            rule = naive("gated_delta_rule").naive_chunk_gated_delta_rule
            found = rule(q, k, v, decay_BTH, beta, chunk_size=8, scale=1.0, output_final_state=True)
            return delta(q, k, v, beta, decay_BTH), found


NAMES = ("gla", "gla, one decay for a head", "retention", "delta", "gated delta", "gated delta in chunks")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_states_and_gradients_are_naive(name: str) -> None:
    results = []
    for side in (0, 1):
        x = {key: value.requires_grad_() for key, value in inputs().items()}
        y, state = ours_and_naive(name, x)[side]
        loss = (y.double() * draw("weight", VALUE)).sum()
        if state is not None:
            loss = loss + (state.double() * draw("state weight", VALUE)[:, :KEY].transpose(1, 2)).sum()
        slopes = torch.autograd.grad(loss, list(x.values()), allow_unused=True)
        results.append((y, state, *slopes))
    for mine, other in zip(*results, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert torch.allclose(mine, other.double(), rtol=1e-4, atol=1e-5)
